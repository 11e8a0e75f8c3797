//! Python pickles read as data: a small machine for the opcodes that `torch.save` writes.
//!
//! Nothing is called and nothing is imported. A handful of globals that rebuild tensors are understood; a call of any
//! other becomes [`Node::Opaque`], unless its module exists to run things: then the whole file is refused. Values live in an
//! arena, so shared and cyclic ones cost nothing; every opcode adds a bounded amount of memory, and text stays in the file.

use super::safetensors::checked_bytes;
use super::stored::StoredType;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Most values that a pickle may make: a checkpoint of Stable Diffusion makes about 50,000.
const MAX_NODES: usize = 1_000_000;
const MAX_RANK: usize = 16;
/// Bytes of a name: of a tensor, a storage, a global.
const MAX_NAME: usize = 512;

/// Index of a value in its [`Pickle`].
pub(super) type Id = usize;

/// A value of a pickle.
#[derive(Debug)]
pub(super) enum Node {
    None,
    Bool,
    Int(i64),
    /// Where the text lies in the pickle.
    Text(Range<usize>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global {
        module: String,
        name: String,
    },
    Storage(Arc<Storage>),
    Tensor(Arc<Strided>),
    /// Something that weights do not need: a number, an optimiser's object, a library's class.
    Opaque,
}

/// A flat run of elements, stored outside the pickle.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    pub stored: StoredType,
    pub key: String,
    /// Elements.
    pub len: usize,
}

/// A view of a storage, checked: every index is inside, and there are no more elements than in the storage.
#[derive(Clone, Debug)]
pub(super) struct Strided {
    pub storage: Arc<Storage>,
    /// In elements, like the strides.
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

impl Strided {
    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&n, &stride)| {
            let fits = n <= 1 || stride == expected;
            expected *= n;
            fits
        })
    }
}

/// What a pickle holds.
pub(super) struct Pickle<'a> {
    bytes: &'a [u8],
    nodes: Vec<Node>,
    /// The value that the pickle describes.
    pub root: Id,
    /// Where the next pickle begins, if another follows.
    pub end: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle that begins at `start`.
    ///
    /// # Errors
    /// What is wrong: cut short, malformed, past the limits, or asking to run something.
    pub fn read(bytes: &'a [u8], start: usize) -> Result<Self, String> {
        let mut machine =
            Machine { bytes, at: start, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        let root = machine.run()?;
        Ok(Self { bytes, nodes: machine.nodes, root, end: machine.at })
    }

    /// A value.
    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id]
    }

    /// The text of a text value, unless it is too long for a name.
    pub fn text(&self, id: Id) -> Option<&'a str> {
        match &self.nodes[id] {
            Node::Text(range) if range.len() <= MAX_NAME => std::str::from_utf8(&self.bytes[range.clone()]).ok(),
            _ => None,
        }
    }

    /// Every storage that the pickle names.
    pub fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Storage(storage) => Some(&**storage),
            _ => None,
        })
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Heights of the stack where marks stand.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

type Step<T> = Result<T, String>;

impl Machine<'_> {
    fn run(&mut self) -> Step<Id> {
        loop {
            let opcode_at = self.at;
            let opcode = self.take(1)?.start;
            match self.bytes[opcode] {
                0x80 => self.skip(1)?,                     // PROTO
                0x95 => self.skip(8)?,                     // FRAME
                b'.' => return self.pop(),                 // STOP
                b'(' => self.marks.push(self.stack.len()), // MARK
                b'0' => {
                    self.pop()?; // POP
                }
                b'1' => {
                    self.pop_mark()?; // POP_MARK
                }
                b'2' => {
                    // DUP
                    let top = self.pop()?;
                    self.stack.extend([top, top]);
                }
                b'N' => self.push(Node::None)?,
                0x88 | 0x89 => self.push(Node::Bool)?, // NEWTRUE, NEWFALSE
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                b'K' => {
                    let value = u8::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Node::Int(value.into()))?;
                }
                0x8a => {
                    let n = u8::from_le_bytes(self.array()?);
                    self.long(n.into())?;
                }
                0x8b => {
                    let n = u32::from_le_bytes(self.array()?);
                    self.long(n.into())?;
                }
                b'G' => {
                    self.skip(8)?; // BINFLOAT
                    self.push(Node::Opaque)?;
                }
                // Text, and the byte strings that Python 2 wrote in its place.
                0x8c | b'U' => {
                    let n = u8::from_le_bytes(self.array()?);
                    self.text(n.into())?;
                }
                b'X' | b'T' => {
                    let n = u32::from_le_bytes(self.array()?);
                    self.text(n.into())?;
                }
                0x8d => {
                    let n = u64::from_le_bytes(self.array()?);
                    self.text(n)?;
                }
                b'C' => {
                    let n = u8::from_le_bytes(self.array()?);
                    self.opaque(n.into())?;
                }
                b'B' => {
                    let n = u32::from_le_bytes(self.array()?);
                    self.opaque(n.into())?;
                }
                0x8e | 0x96 => {
                    let n = u64::from_le_bytes(self.array()?);
                    self.opaque(n)?;
                }
                b']' => self.push(Node::List(Vec::new()))?,
                b')' => self.push(Node::Tuple(Vec::new()))?,
                b'}' => self.push(Node::Dict(Vec::new()))?,
                0x8f => self.push(Node::Opaque)?, // EMPTY_SET
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(Node::Tuple(items))?;
                }
                b'l' => {
                    let items = self.pop_mark()?;
                    self.push(Node::List(items))?;
                }
                b'd' => {
                    let items = self.pop_mark()?;
                    self.push(Node::Dict(pairs(&items)))?;
                }
                n @ 0x85..=0x87 => {
                    // TUPLE1, TUPLE2, TUPLE3
                    let from = self.depth_below(usize::from(n - 0x84))?;
                    let items = self.stack.split_off(from);
                    self.push(Node::Tuple(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend(&[item])?; // APPEND
                }
                b'e' | 0x90 => {
                    let items = self.pop_mark()?;
                    self.extend(&items)?; // APPENDS, ADDITEMS
                }
                b's' => {
                    let from = self.depth_below(2)?;
                    let items = self.stack.split_off(from);
                    self.set_items(&items)?; // SETITEM
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.set_items(&items)?; // SETITEMS
                }
                b'q' => {
                    let slot = u8::from_le_bytes(self.array()?);
                    self.memoise(slot.into())?;
                }
                b'r' => {
                    let slot = u32::from_le_bytes(self.array()?);
                    self.memoise(slot)?;
                }
                0x94 => self.memoise(self.memo.len() as u32)?,
                b'h' => {
                    let slot = u8::from_le_bytes(self.array()?);
                    self.recall(slot.into())?;
                }
                b'j' => {
                    let slot = u32::from_le_bytes(self.array()?);
                    self.recall(slot)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(Node::Global { module, name })?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (module, name) = (self.owned_text(module)?, self.owned_text(name)?);
                    self.push(Node::Global { module, name })?;
                }
                b'R' | 0x81 => {
                    // REDUCE, NEWOBJ
                    let (arguments, callable) = (self.pop()?, self.pop()?);
                    let made = self.call(callable, arguments)?;
                    self.push(made)?;
                }
                b'b' => {
                    // BUILD: an object's attributes, which weights do not need.
                    self.pop()?;
                    self.top()?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    let storage = self.storage(id)?;
                    self.push(Node::Storage(Arc::new(storage)))?;
                }
                other => return Err(format!("the pickle's opcode {other:#04x} at byte {opcode_at} is not supported")),
            }
        }
    }

    fn take(&mut self, n: u64) -> Step<Range<usize>> {
        let left = self.bytes.len() - self.at;
        if n > left as u64 {
            return Err(format!("the pickle wants {n} bytes at byte {}, {left} are left", self.at));
        }
        let range = self.at..self.at + n as usize;
        self.at = range.end;
        Ok(range)
    }

    fn skip(&mut self, n: u64) -> Step<()> {
        self.take(n).map(|_| ())
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let range = self.take(N as u64)?;
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[range]);
        Ok(array)
    }

    fn line(&mut self) -> Step<String> {
        // No name of a Python module or class is longer.
        let window = &self.bytes[self.at..self.bytes.len().min(self.at + MAX_NAME)];
        let n = window.iter().position(|&b| b == b'\n').ok_or("a global's name in the pickle has no end")?;
        let text = std::str::from_utf8(&window[..n]).map_err(|_| "a global's name in the pickle is not text")?;
        self.at += n + 1;
        Ok(text.to_owned())
    }

    fn push(&mut self, node: Node) -> Step<()> {
        if self.nodes.len() == MAX_NODES {
            return Err(format!("the pickle makes more than {MAX_NODES} values"));
        }
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
        Ok(())
    }

    /// The stack's height without its `n` uppermost values; values below a mark cannot be reached.
    fn depth_below(&self, n: usize) -> Step<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let depth = self.stack.len().checked_sub(n).filter(|&depth| depth >= floor);
        depth.ok_or_else(|| format!("the pickle's stack is empty at byte {}", self.at))
    }

    fn pop(&mut self) -> Step<Id> {
        self.depth_below(1)?;
        Ok(self.stack.pop().unwrap_or_default())
    }

    fn top(&self) -> Step<Id> {
        Ok(self.stack[self.depth_below(1)?])
    }

    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        let height = self.marks.pop().ok_or_else(|| format!("the pickle lacks a mark before byte {}", self.at))?;
        Ok(self.stack.split_off(height))
    }

    fn memoise(&mut self, slot: u32) -> Step<()> {
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Step<()> {
        let id = self.memo.get(&slot).ok_or_else(|| format!("the pickle recalls value {slot}, which it never kept"))?;
        self.stack.push(*id);
        Ok(())
    }

    fn long(&mut self, n: u64) -> Step<()> {
        let range = self.take(n)?;
        let digits = &self.bytes[range];
        let node = match digits.last() {
            None => Node::Int(0),
            Some(&high) if digits.len() <= 8 => {
                let mut wide = [if high & 0x80 == 0 { 0 } else { 0xff }; 8];
                wide[..digits.len()].copy_from_slice(digits);
                Node::Int(i64::from_le_bytes(wide))
            }
            Some(_) => Node::Opaque,
        };
        self.push(node)
    }

    fn text(&mut self, n: u64) -> Step<()> {
        let range = self.take(n)?;
        self.push(Node::Text(range))
    }

    fn opaque(&mut self, n: u64) -> Step<()> {
        self.skip(n)?;
        self.push(Node::Opaque)
    }

    fn extend(&mut self, items: &[Id]) -> Step<()> {
        let list = self.top()?;
        match &mut self.nodes[list] {
            Node::List(list) => list.extend(items),
            Node::Opaque => {}
            _ => return Err(format!("the pickle appends to what is no list, before byte {}", self.at)),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Step<()> {
        let dict = self.top()?;
        match &mut self.nodes[dict] {
            Node::Dict(dict) => dict.extend(pairs(items)),
            Node::Opaque => {}
            _ => return Err(format!("the pickle sets items of what is no dictionary, before byte {}", self.at)),
        }
        Ok(())
    }

    fn owned_text(&self, id: Id) -> Step<String> {
        match &self.nodes[id] {
            Node::Text(range) if range.len() <= MAX_NAME => {
                Ok(String::from_utf8_lossy(&self.bytes[range.clone()]).into_owned())
            }
            _ => Err(format!("the pickle names something by what is no short text, before byte {}", self.at)),
        }
    }

    fn tuple(&self, id: Id, what: &str) -> Step<&[Id]> {
        match &self.nodes[id] {
            Node::Tuple(items) => Ok(items),
            _ => Err(format!("{what} in the pickle are no tuple")),
        }
    }

    fn size(&self, id: Option<&Id>, what: &str) -> Step<usize> {
        match id.map(|&id| &self.nodes[id]) {
            Some(&Node::Int(value)) => {
                usize::try_from(value).map_err(|_| format!("{what} in the pickle is {value}, less than 0"))
            }
            _ => Err(format!("{what} in the pickle is no whole number")),
        }
    }

    fn sizes(&self, id: Option<&Id>, what: &str) -> Step<Vec<usize>> {
        let items = self.tuple(*id.ok_or_else(|| format!("{what} is missing in the pickle"))?, what)?;
        if items.len() > MAX_RANK {
            return Err(format!("a tensor in the pickle has {} dimensions", items.len()));
        }
        items.iter().map(|id| self.size(Some(id), what)).collect()
    }

    /// A persistent id: `("storage", type, key, location, elements)`.
    fn storage(&self, id: Id) -> Step<Storage> {
        let items = self.tuple(id, "a storage's parts")?;
        let [_, kind, key, _, len, view @ ..] = items else {
            return Err("a storage in the pickle has too few parts".to_owned());
        };
        if view.iter().any(|&id| !matches!(self.nodes[id], Node::None)) {
            return Err("a storage in the pickle is a view of another, which is not supported".to_owned());
        }
        let Node::Global { module, name } = &self.nodes[*kind] else {
            return Err("a storage in the pickle has no type".to_owned());
        };
        let stored = match name.as_str() {
            "FloatStorage" => StoredType::F32,
            "HalfStorage" => StoredType::F16,
            "BFloat16Storage" => StoredType::BF16,
            "DoubleStorage" => StoredType::F64,
            "LongStorage" => StoredType::I64,
            "IntStorage" => StoredType::I32,
            "ShortStorage" => StoredType::I16,
            "CharStorage" => StoredType::I8,
            "ByteStorage" => StoredType::U8,
            "BoolStorage" => StoredType::Bool,
            _ => return Err(format!("the storage type {module}.{name} is not supported")),
        };
        Ok(Storage { stored, key: self.owned_text(*key)?, len: self.size(Some(len), "a storage's length")? })
    }

    /// What calling `callable` would make, without calling anything.
    fn call(&self, callable: Id, arguments: Id) -> Step<Node> {
        let Node::Global { module, name } = &self.nodes[callable] else {
            return Ok(Node::Opaque);
        };
        match (module.as_str(), name.as_str()) {
            ("collections", "OrderedDict") => Ok(Node::Dict(Vec::new())),
            ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => {
                self.tensor(self.tuple(arguments, "a tensor's parts")?)
            }
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                let data = self.tuple(arguments, "a parameter's parts")?.first();
                match data.map(|&id| &self.nodes[id]) {
                    Some(Node::Tensor(tensor)) => Ok(Node::Tensor(tensor.clone())),
                    _ => Err("a parameter in the pickle has no tensor".to_owned()),
                }
            }
            _ if runs_things(module, name) => Err(format!("the pickle asks to run {module}.{name}; nothing was run")),
            _ => Ok(Node::Opaque),
        }
    }

    fn tensor(&self, parts: &[Id]) -> Step<Node> {
        let Some(Node::Storage(storage)) = parts.first().map(|&id| &self.nodes[id]) else {
            return Err("a tensor in the pickle has no storage".to_owned());
        };
        let offset = self.size(parts.get(1), "a tensor's offset")?;
        let shape = self.sizes(parts.get(2), "a tensor's shape")?;
        let strides = self.sizes(parts.get(3), "a tensor's strides")?;
        if shape.len() != strides.len() {
            return Err(format!("a tensor in the pickle has shape {shape:?} but strides {strides:?}"));
        }
        let bytes = checked_bytes(&shape, storage.stored)
            .ok_or_else(|| format!("a tensor in the pickle has the impossible shape {shape:?}"))?;
        if bytes > 0 {
            // The last element's index; the first one's is the offset.
            let last = shape
                .iter()
                .zip(&strides)
                .try_fold(offset, |at, (&n, &stride)| at.checked_add((n - 1).checked_mul(stride)?));
            if last.is_none_or(|last| last >= storage.len) || bytes / storage.stored.size() > storage.len {
                return Err(format!(
                    "a tensor in the pickle of shape {shape:?}, strides {strides:?} and offset {offset} reaches past \
                     the {} elements of storage {}",
                    storage.len, storage.key
                ));
            }
        }
        Ok(Node::Tensor(Arc::new(Strided { storage: storage.clone(), offset, shape, strides })))
    }
}

fn pairs(items: &[Id]) -> Vec<(Id, Id)> {
    items.as_chunks::<2>().0.iter().map(|&[key, value]| (key, value)).collect()
}

/// Whether weights have no honest reason to call this: modules that run programs, code, or touch files and networks.
fn runs_things(module: &str, name: &str) -> bool {
    match module.split('.').next().unwrap_or(module) {
        "builtins" | "__builtin__" => !matches!(
            name,
            "bool"
                | "bytearray"
                | "bytes"
                | "complex"
                | "dict"
                | "float"
                | "frozenset"
                | "int"
                | "list"
                | "object"
                | "range"
                | "set"
                | "slice"
                | "tuple"
        ),
        // The one honest use is in NumPy arrays, which some training checkpoints keep beside the weights.
        "codecs" | "_codecs" => name != "encode",
        "_pickle" | "asyncio" | "bdb" | "code" | "commands" | "ctypes" | "ftplib" | "http" | "importlib" | "io"
        | "marshal" | "multiprocessing" | "nt" | "os" | "pdb" | "pickle" | "pkgutil" | "posix" | "pty" | "requests"
        | "runpy" | "shutil" | "socket" | "subprocess" | "sys" | "webbrowser" => true,
        _ => false,
    }
}
