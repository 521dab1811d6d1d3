//! `torch.save` files, spelled by hand for tests: a zip archive, a pickle of protocol 2, storages.
//!
//! Invariant: nothing here is shared with the library's reader or writer, so that a test has two authors.

/// A tensor to be saved.
#[derive(Debug, Clone)]
pub struct Saved {
    /// Its key in the dict.
    pub name: String,
    /// The class of its storage: `BFloat16Storage`.
    pub storage: &'static str,
    /// Bytes of an element.
    pub size: usize,
    /// Outermost first.
    pub shape: Vec<usize>,
    /// All of its storage.
    pub bytes: Vec<u8>,
}

/// The class of the storage and the size of an element, of a safetensors type.
///
/// # Panics
/// For a type that torch does not store.
pub fn storage_of(dtype: &str) -> (&'static str, usize) {
    match dtype {
        "F32" => ("FloatStorage", 4),
        "F16" => ("HalfStorage", 2),
        "BF16" => ("BFloat16Storage", 2),
        "U8" => ("ByteStorage", 1),
        "I8" => ("CharStorage", 1),
        other => panic!("no storage for {other}"),
    }
}

/// Operations of a pickle.
#[derive(Debug, Clone, Default)]
pub struct Pickle(pub Vec<u8>);

impl Pickle {
    /// `PROTO 2`
    pub fn new() -> Self {
        Self(vec![0x80, 2])
    }
    /// Bytes as they are.
    pub fn op(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
    /// `GLOBAL`
    pub fn global(self, module: &str, name: &str) -> Self {
        self.op(format!("c{module}\n{name}\n").as_bytes())
    }
    /// `BINUNICODE`
    pub fn text(self, text: &str) -> Self {
        let length = (text.len() as u32).to_le_bytes();
        self.op(b"X").op(&length).op(text.as_bytes())
    }
    /// `LONG1` of eight bytes
    pub fn int(self, n: i64) -> Self {
        self.op(&[0x8a, 8]).op(&n.to_le_bytes())
    }
    /// A tuple of integers.
    pub fn ints(self, numbers: &[usize]) -> Self {
        let all = numbers.iter().fold(self.op(b"("), |p, &n| p.int(n as i64));
        all.op(b"t")
    }
    /// A persistent storage.
    pub fn storage(self, class: &str, key: &str, elements: usize) -> Self {
        let head = self.op(b"((").text("storage").global("torch", class);
        head.text(key).text("cpu").int(elements as i64).op(b"tQ")
    }
    /// `_rebuild_tensor_v2` of a storage.
    pub fn tensor(
        self,
        storage: (&str, &str, usize),
        first: usize,
        shape: &[usize],
        stride: &[usize],
    ) -> Self {
        let (class, key, elements) = storage;
        let call = self.global("torch._utils", "_rebuild_tensor_v2");
        // the mark of the arguments is the first of the storage's two
        let args = call.storage(class, key, elements).int(first as i64);
        let args = args.ints(shape).ints(stride).op(&[0x89]);
        args.global("collections", "OrderedDict").op(b")RtR")
    }
}

/// Strides of a tensor whose last index runs fastest.
pub fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut stride = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        stride[i - 1] = stride[i] * shape[i];
    }
    stride
}

/// The pickle of a dict of tensors, storages named by their numbers.
pub fn pickle_of(tensors: &[Saved]) -> Vec<u8> {
    let mut pickle = Pickle::new().op(b"}(");
    for (n, t) in tensors.iter().enumerate() {
        let storage = (t.storage, &*n.to_string(), t.bytes.len() / t.size);
        pickle = pickle
            .text(&t.name)
            .tensor(storage, 0, &t.shape, &row_major(&t.shape));
    }
    pickle.op(b"u.").0
}

/// A whole file.
pub fn archive_of(tensors: &[Saved]) -> Vec<u8> {
    let mut records = vec![("archive/data.pkl".to_owned(), pickle_of(tensors))];
    for (n, t) in tensors.iter().enumerate() {
        records.push((format!("archive/data/{n}"), t.bytes.clone()));
    }
    zip_of(&records)
}

/// A zip archive of stored records; checksums are 0, which torch does not look at.
pub fn zip_of(records: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in records {
        let at = (file.len() as u32).to_le_bytes();
        let length = (bytes.len() as u32).to_le_bytes();
        let name_length = (name.len() as u16).to_le_bytes();
        let head = [&[0; 14][..], &length, &length, &name_length].concat();
        file.extend(
            [
                &b"PK\x03\x04"[..],
                &head[..],
                &[0; 2],
                name.as_bytes(),
                bytes,
            ]
            .concat(),
        );
        directory.extend([&b"PK\x01\x02"[..], &[0; 2], &head, &[0; 12]].concat());
        directory.extend([&at, name.as_bytes()].concat());
    }
    let count = (records.len() as u16).to_le_bytes();
    let (at, length) = (
        (file.len() as u32).to_le_bytes(),
        (directory.len() as u32).to_le_bytes(),
    );
    let end = [
        &b"PK\x05\x06"[..],
        &[0; 4],
        &count,
        &count,
        &length,
        &at,
        &[0; 2],
    ]
    .concat();
    [file, directory, end].concat()
}
