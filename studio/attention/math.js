// The arithmetic of attention, without any page around it: Vaswani et al. 2017, section 3.2.1.

/** Base64 of little-endian 32-bit floats, as numbers. */
export function decodeFloats(text) {
  return new Float32Array(decodeBytes(text).buffer);
}

/** Base64, as bytes. */
export function decodeBytes(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let n = 0; n < binary.length; n++) bytes[n] = binary.charCodeAt(n);
  return bytes;
}

/** What is added to the scaled score of query i and key j: masks and position biases. */
export function biasAt(layer, head, i, j) {
  const { bias, time, source } = layer;
  if (bias.causal && j + time > i + source) return -Infinity;
  if (bias.window && j + time + bias.window <= i + source) return -Infinity;
  const own = bias.own_position_stays && j + time === i + source;
  if (!own && bias.hidden.includes(j)) return -Infinity;
  const part = (array, n, length) =>
    array ? array.data[(array.shape[0] > 1 ? head : 0) * length + n] : 0;
  return part(bias.by_distance, j - i + time - 1, time + source - 1)
    + part(bias.by_key, j, source) + part(bias.by_pair, i * source + j, time * source);
}

/** The vectors of one head: q of query i, k and v of key j. */
export function vectorsOf(layer, head, i, j) {
  const { heads, kv_heads: kvHeads, head_dim: d, value_dim: dv, time, source } = layer;
  const kv = Math.floor(head / (heads / kvHeads));
  return {
    q: layer.q.subarray((head * time + i) * d, (head * time + i + 1) * d),
    k: layer.k.subarray((kv * source + j) * d, (kv * source + j + 1) * d),
    v: layer.v.subarray((kv * source + j) * dv, (kv * source + j + 1) * dv),
  };
}

/** Steps 2 to 6 for query i: scores, scaled scores, weights, and the weighted sum of the values. */
export function attend(layer, head, i) {
  const { source, value_dim: dv } = layer;
  const scores = new Float64Array(source);
  const scaled = new Float64Array(source);
  const weights = new Float64Array(source);
  const sum = new Float64Array(dv);
  let max = -Infinity;
  for (let j = 0; j < source; j++) {
    const { q, k } = vectorsOf(layer, head, i, j);
    let score = 0;
    for (let n = 0; n < q.length; n++) score += q[n] * k[n];
    scores[j] = score;
    let x = score * layer.scale;
    if (layer.soft_cap) x = layer.soft_cap * Math.tanh(x / layer.soft_cap);
    scaled[j] = x + biasAt(layer, head, i, j);
    if (scaled[j] > max) max = scaled[j];
  }
  let total = 0;
  if (max > -Infinity) {
    for (let j = 0; j < source; j++) total += weights[j] = Math.exp(scaled[j] - max);
    for (let j = 0; j < source; j++) weights[j] /= total;
  }
  for (let j = 0; j < source; j++) {
    if (weights[j] === 0) continue;
    const { v } = vectorsOf(layer, head, i, j);
    for (let n = 0; n < dv; n++) sum[n] += weights[j] * v[n];
  }
  return { scores, scaled, weights, sum, max, total };
}

/** The weights alone, for pictures of many rows: the same numbers, with less looking up. */
export function weightsOf(layer, head, i) {
  const { heads, kv_heads: kvHeads, head_dim: d, time, source, scale, soft_cap: cap, bias } = layer;
  const kv = Math.floor(head / (heads / kvHeads));
  const { q, k } = layer;
  const out = new Float32Array(source);
  const plain = !bias.by_distance && !bias.by_key && !bias.by_pair && bias.hidden.length === 0;
  const end = bias.causal ? Math.min(source, i + source - time + 1) : source;
  const start = bias.window ? Math.max(0, i + source - time + 1 - bias.window) : 0;
  const x = new Float64Array(end);
  const from = (head * time + i) * d;
  let max = -Infinity;
  for (let j = start; j < end; j++) {
    const at = (kv * source + j) * d;
    let score = 0;
    for (let n = 0; n < d; n++) score += q[from + n] * k[at + n];
    score *= scale;
    if (cap) score = cap * Math.tanh(score / cap);
    x[j] = plain ? score : score + biasAt(layer, head, i, j);
    if (x[j] > max) max = x[j];
  }
  if (max === -Infinity) return out;
  let total = 0;
  for (let j = start; j < end; j++) total += x[j] = Math.exp(x[j] - max);
  for (let j = start; j < end; j++) out[j] = x[j] / total;
  return out;
}

/** The weights times the norms of the transformed values, made to sum to 1: Kobayashi et al. 2020. */
export function normWeighted(weights, norms, head) {
  const out = new Float32Array(weights.length);
  let total = 0;
  for (let j = 0; j < out.length; j++) total += out[j] = weights[j] * norms[head * weights.length + j];
  if (total > 0) for (let j = 0; j < out.length; j++) out[j] /= total;
  return out;
}

/** One layer further: (A / 2 + I / 2) times what came before, A being the mean of the heads: Abnar & Zuidema 2020. */
export function rolloutStep(layer, before) {
  const n = layer.time;
  const out = Array.from({ length: n }, () => new Float32Array(n));
  for (let i = 0; i < n; i++) {
    const mix = new Float64Array(n);
    for (let head = 0; head < layer.heads; head++) {
      const weights = weightsOf(layer, head, i);
      for (let j = 0; j < n; j++) mix[j] += weights[j];
    }
    for (let j = 0; j < n; j++) mix[j] = 0.5 * mix[j] / layer.heads + (i === j ? 0.5 : 0);
    if (!before) {
      out[i].set(mix);
      continue;
    }
    const row = new Float64Array(n);
    for (let j = 0; j < n; j++) {
      if (mix[j] === 0) continue;
      for (let m = 0; m < n; m++) row[m] += mix[j] * before[j][m];
    }
    out[i].set(row);
  }
  return out;
}

/** How far the weights and sums computed here are from the model's own, over a head's recorded rows. */
export function agreementOf(layer, head) {
  const { rows, weights, sums } = layer.recorded;
  const { source, value_dim: dv } = layer;
  let worst = 0;
  let worstSum = 0;
  rows.forEach((i, n) => {
    const row = attend(layer, head, i);
    const at = head * rows.length + n;
    for (let j = 0; j < source; j++) worst = Math.max(worst, Math.abs(row.weights[j] - weights[at * source + j]));
    for (let m = 0; m < dv; m++) worstSum = Math.max(worstSum, Math.abs(row.sum[m] - sums[at * dv + m]));
  });
  return { rows: rows.length, weights: worst, sums: worstSum };
}

/** Which tokens of two texts are the same: pairs of positions, by the longest common subsequence of ids. */
export function alignTokens(a, b) {
  let start = 0;
  while (start < a.length && start < b.length && a[start].id === b[start].id) start++;
  let tail = 0;
  while (tail < a.length - start && tail < b.length - start
    && a[a.length - 1 - tail].id === b[b.length - 1 - tail].id) tail++;
  const pairs = [];
  for (let n = 0; n < start; n++) pairs.push([n, n]);
  const [n, m] = [a.length - tail - start, b.length - tail - start];
  if (n * m > 0 && n * m <= 4e6) {
    const length = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1));
    for (let i = n - 1; i >= 0; i--) {
      for (let j = m - 1; j >= 0; j--) {
        length[i][j] = a[start + i].id === b[start + j].id
          ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
      }
    }
    for (let i = 0, j = 0; i < n && j < m;) {
      if (a[start + i].id === b[start + j].id) pairs.push([start + i++, start + j++]);
      else if (length[i + 1][j] >= length[i][j + 1]) i++;
      else j++;
    }
  }
  for (let t = tail; t > 0; t--) pairs.push([a.length - t, b.length - t]);
  // Words that were put in one another's place stand beside each other too.
  const all = [];
  let [left, right] = [0, 0];
  for (const [i, j] of [...pairs, [a.length, b.length]]) {
    if (i - left === j - right) for (; left < i; left++, right++) all.push([left, right]);
    if (i < a.length) all.push([i, j]);
    [left, right] = [i + 1, j + 1];
  }
  return all;
}
