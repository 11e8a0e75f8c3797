// Kernels of training and drawing on NVIDIA GPUs, in f32. Sums are made in a fixed order: a run gives the same bits each time.
//
// Threads that stand for elements stride over all of them; kernels that reduce say how many threads they want. Places are counted
// in 32 bits, as division in 64 bits would take longer than the memory does: no tensor has more than 2^31 elements.

namespace {

constexpr unsigned ALL = 0xffffffffu;

__device__ unsigned first_element() { return blockIdx.x * blockDim.x + threadIdx.x; }
__device__ unsigned all_threads() { return gridDim.x * blockDim.x; }

__device__ float warp_sum(float value) {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(ALL, value, offset);
    return value;
}

__device__ float warp_max(float value) {
    for (int offset = 16; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(ALL, value, offset));
    return value;
}

// The sum over a block of whole warps, in all of its threads. `shared` has room for one number per warp.
__device__ float block_sum(float value, float *shared) {
    value = warp_sum(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++) sum += shared[warp];
    return sum;
}

__device__ float sigmoid(float x) { return 1 / (1 + expf(-x)); }

// The normal distribution's distribution function.
__device__ float phi(float x) { return 0.5f * (1 + erff(x * 0.70710678118654752f)); }

__device__ float gelu(float x) { return x * phi(x); }

__device__ float gelu_slope(float x) { return phi(x) + x * 0.39894228040143268f * expf(-0.5f * x * x); }

__device__ float activation(float x, int kind) {
    switch (kind) {
        case 0: return x * sigmoid(x);
        case 1: return gelu(x);
        default: return x * sigmoid(1.702f * x);
    }
}

__device__ float activation_slope(float x, int kind) {
    if (kind == 1) return gelu_slope(x);
    float factor = kind == 0 ? 1.0f : 1.702f;
    float s = sigmoid(factor * x);
    return s * (1 + factor * x * (1 - s));
}

// Ten rounds of Philox4x32 on the counter (block, stream): the bits of rng/philox.rs.
__device__ uint4 philox(uint2 key, uint2 stream, unsigned long long block) {
    uint4 c = make_uint4(unsigned(block), unsigned(block >> 32), stream.x, stream.y);
    for (int round = 0; round < 10; round++) {
        unsigned high0 = __umulhi(c.x, 0xD2511F53u), high1 = __umulhi(c.z, 0xCD9E8D57u);
        c = make_uint4(high1 ^ c.y ^ key.x, c.z * 0xCD9E8D57u, high0 ^ c.w ^ key.y, c.x * 0xD2511F53u);
        key.x += 0x9E3779B9u;
        key.y += 0xBB67AE85u;
    }
    return c;
}

}  // namespace

// y = activation(x): SiLU (kind 0), GELU (1), its approximation by a sigmoid (2).
extern "C" __global__ void activate(const float *x, float *y, unsigned n, int kind) {
    for (unsigned i = first_element(); i < n; i += all_threads()) y[i] = activation(x[i], kind);
}

extern "C" __global__ void activate_backward(const float *x, const float *dy, float *dx, unsigned n, int kind) {
    for (unsigned i = first_element(); i < n; i += all_threads()) dx[i] = dy[i] * activation_slope(x[i], kind);
}

// x (rows, 2 half): values, then gates.
extern "C" __global__ void geglu(const float *x, float *y, unsigned n, unsigned half) {
    for (unsigned i = first_element(); i < n; i += all_threads()) {
        const float *value = x + i / half * 2 * half + i % half;
        y[i] = value[0] * gelu(value[half]);
    }
}

extern "C" __global__ void geglu_backward(const float *x, const float *dy, float *dx, unsigned n, unsigned half) {
    for (unsigned i = first_element(); i < n; i += all_threads()) {
        unsigned at = i / half * 2 * half + i % half;
        dx[at] = dy[i] * gelu(x[at + half]);
        dx[at + half] = dy[i] * x[at] * gelu_slope(x[at + half]);
    }
}

// y = 0 where the upper 24 bits of a draw are below `dropped`, kept * x elsewhere. The draws begin with block `first` of the
// stream; the 64-bit numbers come in halves, the lower one first.
extern "C" __global__ void dropout(const float *x, float *y, unsigned n, unsigned dropped, float kept, unsigned key_low,
                                   unsigned key_high, unsigned stream_low, unsigned stream_high, unsigned first_low,
                                   unsigned first_high) {
    uint2 key = make_uint2(key_low, key_high), stream = make_uint2(stream_low, stream_high);
    unsigned long long first = (unsigned long long)first_high << 32 | first_low;
    for (unsigned i = first_element(); i < (n + 3) / 4; i += all_threads()) {
        uint4 bits = philox(key, stream, first + i);
        unsigned draws[4] = {bits.x, bits.y, bits.z, bits.w};
        for (unsigned k = 0; k < 4 && 4 * i + k < n; k++) y[4 * i + k] = x[4 * i + k] * (draws[k] >> 8 < dropped ? 0.0f : kept);
    }
}

// x (rows, columns) plus a number for each column.
extern "C" __global__ void add_to_rows(const float *x, const float *bias, float *y, unsigned n, unsigned columns) {
    for (unsigned i = first_element(); i < n; i += all_threads()) y[i] = x[i] + bias[i % columns];
}

// x (planes, plane) plus a number for each plane.
extern "C" __global__ void add_to_planes(const float *x, const float *bias, float *y, unsigned n, unsigned plane) {
    for (unsigned i = first_element(); i < n; i += all_threads()) y[i] = x[i] + bias[i / plane];
}

// (outer, a, b, inner) to (outer, b, a, inner); adds bias (a), where there is one.
extern "C" __global__ void swap_axes(
    const float *x, const float *bias, float *y, unsigned n, unsigned a, unsigned b, unsigned inner, int biased
) {
    for (unsigned i = first_element(); i < n; i += all_threads()) {
        unsigned at = i % inner, rest = i / inner;
        unsigned in_a = rest % a, in_b = rest / a % b, outer = rest / a / b;
        float value = x[((outer * a + in_a) * b + in_b) * inner + at];
        y[i] = biased ? value + bias[in_a] : value;
    }
}

// Sums of each of the rows (rows, n): a block for each row, of whole warps.
extern "C" __global__ void sum_each_row(const float *x, float *sums, unsigned n) {
    __shared__ float shared[32];
    const float *row = x + blockIdx.x * n;
    float sum = 0;
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) sum += row[i];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Sums down the columns of x (rows, columns), in parts of `part` rows: (parts, columns). Blocks of 32 x 8 threads; the grid has
// a block for each 32 columns, and for each part.
extern "C" __global__ void sum_columns(const float *x, float *sums, unsigned rows, unsigned columns, unsigned part) {
    __shared__ float shared[8][33];
    unsigned column = blockIdx.x * 32 + threadIdx.x, end = min(rows, (blockIdx.y + 1) * part);
    float sum = 0;
    if (column < columns) {
        for (unsigned row = blockIdx.y * part + threadIdx.y; row < end; row += 8) sum += x[row * columns + column];
    }
    shared[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && column < columns) {
        sum = 0;
        for (int i = 0; i < 8; i++) sum += shared[i][threadIdx.x];
        sums[blockIdx.y * columns + column] = sum;
    }
}

// A block of whole warps for each group of each sample of x (batch, channels, plane). Leaves mean and 1 / deviation of each.
extern "C" __global__ void group_norm(
    const float *x, const float *weight, const float *bias, float *y, float *statistics, unsigned channels, unsigned plane,
    unsigned groups, float eps, int silu
) {
    __shared__ float shared[32];
    unsigned each = channels / groups, n = each * plane, first = blockIdx.x % groups * each;
    x += blockIdx.x * n;
    y += blockIdx.x * n;
    float sum = 0;
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
    float mean = block_sum(sum, shared) / n;
    float squares = 0;
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) squares += (x[i] - mean) * (x[i] - mean);
    float scale = 1 / sqrtf(block_sum(squares, shared) / n + eps);
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        unsigned channel = first + i / plane;
        float z = (x[i] - mean) * scale * weight[channel] + bias[channel];
        y[i] = silu ? activation(z, 0) : z;
    }
    if (threadIdx.x == 0) {
        statistics[2 * blockIdx.x] = mean;
        statistics[2 * blockIdx.x + 1] = scale;
    }
}

// As `group_norm`. The gradients of weight and bias are those of each sample: (batch, channels).
extern "C" __global__ void group_norm_backward(
    const float *x, const float *weight, const float *bias, const float *statistics, const float *dy, float *dx,
    float *d_weight, float *d_bias, unsigned channels, unsigned plane, unsigned groups, int silu
) {
    __shared__ float shared[32];
    unsigned each = channels / groups, n = each * plane, first = blockIdx.x % groups * each;
    unsigned sample = blockIdx.x / groups;
    x += blockIdx.x * n;
    dy += blockIdx.x * n;
    dx += blockIdx.x * n;
    float mean = statistics[2 * blockIdx.x], scale = statistics[2 * blockIdx.x + 1];
    int lane = threadIdx.x % 32;
    float sum = 0, sum_hat = 0;  // Of the gradient by the normalised input, and of that times it: in the first lanes.
    for (unsigned c = threadIdx.x / 32; c < each; c += blockDim.x / 32) {
        float by_weight = 0, by_bias = 0, w = weight[first + c], b = bias[first + c];
        for (unsigned p = lane; p < plane; p += 32) {
            float hat = (x[c * plane + p] - mean) * scale, g = dy[c * plane + p];
            if (silu) g *= activation_slope(hat * w + b, 0);
            by_weight += g * hat;
            by_bias += g;
        }
        by_weight = warp_sum(by_weight);
        by_bias = warp_sum(by_bias);
        if (lane == 0) {
            d_weight[sample * channels + first + c] = by_weight;
            d_bias[sample * channels + first + c] = by_bias;
            sum += w * by_bias;
            sum_hat += w * by_weight;
        }
    }
    sum = block_sum(sum, shared) / n;
    sum_hat = block_sum(sum_hat, shared) / n;
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) {
        unsigned channel = first + i / plane;
        float hat = (x[i] - mean) * scale, g = dy[i];
        if (silu) g *= activation_slope(hat * weight[channel] + bias[channel], 0);
        dx[i] = scale * (g * weight[channel] - sum - hat * sum_hat);
    }
}

// A warp for each row of x (rows, features). Leaves mean and 1 / deviation of each.
extern "C" __global__ void layer_norm(
    const float *x, const float *weight, const float *bias, float *y, float *statistics, unsigned rows, unsigned features,
    float eps
) {
    unsigned row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    int lane = threadIdx.x % 32;
    x += row * features;
    y += row * features;
    float sum = 0;
    for (unsigned i = lane; i < features; i += 32) sum += x[i];
    float mean = warp_sum(sum) / features;
    float squares = 0;
    for (unsigned i = lane; i < features; i += 32) squares += (x[i] - mean) * (x[i] - mean);
    float scale = 1 / sqrtf(warp_sum(squares) / features + eps);
    for (unsigned i = lane; i < features; i += 32) y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
    if (lane == 0) {
        statistics[2 * row] = mean;
        statistics[2 * row + 1] = scale;
    }
}

// Also leaves dy times the normalised input, whose sums down the columns are the gradient of the weight.
extern "C" __global__ void layer_norm_backward(
    const float *x, const float *weight, const float *statistics, const float *dy, float *dx, float *dy_hat, unsigned rows,
    unsigned features
) {
    unsigned row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    int lane = threadIdx.x % 32;
    unsigned start = row * features;
    float mean = statistics[2 * row], scale = statistics[2 * row + 1];
    float sum = 0, sum_hat = 0;
    for (unsigned i = lane; i < features; i += 32) {
        float hat = (x[start + i] - mean) * scale, g = dy[start + i] * weight[i];
        sum += g;
        sum_hat += g * hat;
    }
    sum = warp_sum(sum) / features;
    sum_hat = warp_sum(sum_hat) / features;
    for (unsigned i = lane; i < features; i += 32) {
        float hat = (x[start + i] - mean) * scale, g = dy[start + i];
        dx[start + i] = scale * (g * weight[i] - sum - hat * sum_hat);
        dy_hat[start + i] = g * hat;
    }
}

// softmax(scale x) of each row of x (rows, n), a warp for each. With `causal`, row i of each `queries` rows sees the elements up
// to i + n - queries.
extern "C" __global__ void scaled_softmax(
    const float *x, float *y, unsigned rows, unsigned n, float scale, unsigned queries, int causal
) {
    unsigned row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    int lane = threadIdx.x % 32;
    unsigned seen = causal ? min(n, row % queries + n - queries + 1) : n;
    x += row * n;
    y += row * n;
    float largest = -INFINITY;
    for (unsigned i = lane; i < seen; i += 32) largest = fmaxf(largest, x[i]);
    largest = warp_max(largest);
    float sum = 0;
    for (unsigned i = lane; i < seen; i += 32) sum += expf(scale * (x[i] - largest));
    sum = 1 / warp_sum(sum);
    for (unsigned i = lane; i < n; i += 32) y[i] = i < seen ? expf(scale * (x[i] - largest)) * sum : 0;
}

// A warp for each row; y is what `scaled_softmax` gave.
extern "C" __global__ void scaled_softmax_backward(
    const float *y, const float *dy, float *dx, unsigned rows, unsigned n, float scale
) {
    unsigned row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    int lane = threadIdx.x % 32;
    unsigned start = row * n;
    float sum = 0;
    for (unsigned i = lane; i < n; i += 32) sum += y[start + i] * dy[start + i];
    sum = warp_sum(sum);
    for (unsigned i = lane; i < n; i += 32) dx[start + i] = scale * y[start + i] * (dy[start + i] - sum);
}

// The patches of a convolution: the columns of a matrix (channels * kernel_h * kernel_w, batch * out_h * out_w).
extern "C" __global__ void im2col(
    const float *x, float *columns, int batch, int channels, int height, int width, int kernel_h, int kernel_w, int out_h,
    int out_w, int stride_h, int stride_w, int top, int left, int dilation_h, int dilation_w
) {
    unsigned plane = (unsigned)(out_h * out_w), n = (unsigned)channels * kernel_h * kernel_w * batch * plane;
    for (unsigned i = first_element(); i < n; i += all_threads()) {
        int at = i % plane;
        unsigned rest = i / plane;
        int sample = rest % batch;
        int tap = rest / batch % (kernel_h * kernel_w), channel = rest / batch / (kernel_h * kernel_w);
        int row = at / out_w * stride_h + tap / kernel_w * dilation_h - top;
        int column = at % out_w * stride_w + tap % kernel_w * dilation_w - left;
        bool inside = row >= 0 && row < height && column >= 0 && column < width;
        columns[i] = inside ? x[(((unsigned)sample * channels + channel) * height + row) * width + column] : 0;
    }
}

// The transpose of `im2col`: to each pixel the sum of the places it was copied to.
extern "C" __global__ void col2im(
    const float *columns, float *x, int batch, int channels, int height, int width, int kernel_h, int kernel_w, int out_h,
    int out_w, int stride_h, int stride_w, int top, int left, int dilation_h, int dilation_w
) {
    unsigned n = batch * channels * height * width;
    for (unsigned i = first_element(); i < n; i += all_threads()) {
        int column = i % width, row = i / width % height;
        unsigned rest = i / width / height;
        int channel = rest % channels, sample = rest / channels;
        float sum = 0;
        for (int tap_h = 0; tap_h < kernel_h; tap_h++) {
            int down = row + top - tap_h * dilation_h;
            if (down < 0 || down % stride_h || down / stride_h >= out_h) continue;
            for (int tap_w = 0; tap_w < kernel_w; tap_w++) {
                int right = column + left - tap_w * dilation_w;
                if (right < 0 || right % stride_w || right / stride_w >= out_w) continue;
                unsigned line = ((unsigned)channel * kernel_h + tap_h) * kernel_w + tap_w;
                sum += columns[((line * batch + sample) * out_h + down / stride_h) * out_w + right / stride_w];
            }
        }
        x[i] = sum;
    }
}

// The sum of squares, by one block of whole warps.
extern "C" __global__ void sum_of_squares(const float *x, float *sum, unsigned n) {
    __shared__ float shared[32];
    float squares = 0;
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x) squares += x[i] * x[i];
    squares = block_sum(squares, shared);
    if (threadIdx.x == 0) *sum = squares;
}

// One step of AdamW, in place; the factors are those of the CPU's kernel.
extern "C" __global__ void adamw(
    float *parameter, const float *gradient, float *m, float *v, unsigned n, float keep, float scale, float beta1, float beta2,
    float new1, float new2, float eps, float rate, float root
) {
    for (unsigned i = first_element(); i < n; i += all_threads()) {
        float g = gradient[i] * scale;
        m[i] = beta1 * m[i] + new1 * g;
        v[i] = beta2 * v[i] + new2 * g * g;
        parameter[i] = keep * parameter[i] + rate * m[i] / (sqrtf(v[i]) * root + eps);
    }
}

// The average follows the parameter, in place.
extern "C" __global__ void ema(float *average, const float *parameter, unsigned n, float decay) {
    for (unsigned i = first_element(); i < n; i += all_threads()) {
        // What has reached its value stays there.
        average[i] += (1 - decay) * (parameter[i] - average[i]);
    }
}
