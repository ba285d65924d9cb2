//! A writer of tar streams, well-formed and otherwise.

/// Builds a tar stream entry by entry; what is written is not checked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Archive {
    pub(crate) bytes: Vec<u8>,
}

/// One header, all fields free.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) prefix: Vec<u8>,
    pub(crate) magic: [u8; 8],
    pub(crate) typeflag: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) size: u64,
    pub(crate) mtime: i64,
    pub(crate) device: (u32, u32),
}

impl Raw {
    pub(crate) fn new(typeflag: u8, name: &[u8]) -> Self {
        Self {
            name: name.to_vec(),
            link: Vec::new(),
            prefix: Vec::new(),
            magic: *b"ustar\x0000",
            typeflag,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 0,
            device: (0, 0),
        }
    }

    pub(crate) fn block(&self) -> [u8; 512] {
        let mut block = [0; 512];
        put(&mut block[..100], &self.name);
        number(&mut block[100..108], i128::from(self.mode));
        number(&mut block[108..116], i128::from(self.uid));
        number(&mut block[116..124], i128::from(self.gid));
        number(&mut block[124..136], i128::from(self.size));
        number(&mut block[136..148], i128::from(self.mtime));
        block[156] = self.typeflag;
        put(&mut block[157..257], &self.link);
        block[257..265].copy_from_slice(&self.magic);
        number(&mut block[329..337], i128::from(self.device.0));
        number(&mut block[337..345], i128::from(self.device.1));
        put(&mut block[345..500], &self.prefix);
        seal(&mut block);
        block
    }
}

fn put(field: &mut [u8], text: &[u8]) {
    let count = text.len().min(field.len());
    field[..count].copy_from_slice(&text[..count]);
}

fn number(field: &mut [u8], value: i128) {
    let digits = field.len() - 1;
    if (0..1 << (3 * digits)).contains(&value) {
        field.copy_from_slice(format!("{value:0digits$o}\0").as_bytes());
    } else {
        // Base 256, two's complement, top bit set.
        let bytes = value.to_be_bytes();
        field.copy_from_slice(&bytes[bytes.len() - field.len()..]);
        field[0] |= 0x80;
    }
}

/// Writes the checksum.
pub(crate) fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// One PAX record with its own length in front.
pub(crate) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    let mut text = format!("{length} ").into_bytes();
    text.extend_from_slice(key);
    text.push(b'=');
    text.extend_from_slice(value);
    text.push(b'\n');
    text
}

impl Archive {
    pub(crate) fn raw(mut self, header: &Raw, data: &[u8]) -> Self {
        self.bytes.extend(header.block());
        self.bytes.extend(data);
        self.pad();
        self
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(512);
        self.bytes.resize(length, 0);
    }

    pub(crate) fn pax(self, records: &[(&[u8], &[u8])]) -> Self {
        let text: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        let header = Raw { size: text.len() as u64, ..Raw::new(b'x', b"PaxHeaders/x") };
        self.raw(&header, &text)
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.raw(&Raw { size: data.len() as u64, ..Raw::new(b'0', name.as_bytes()) }, data)
    }

    pub(crate) fn dir(self, name: &str, mode: u32) -> Self {
        self.raw(&Raw { mode, ..Raw::new(b'5', name.as_bytes()) }, b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(&Raw { link: target.into(), ..Raw::new(b'2', name.as_bytes()) }, b"")
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.raw(&Raw { link: target.into(), ..Raw::new(b'1', name.as_bytes()) }, b"")
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.bytes.extend([0; 1024]);
        self.bytes
    }
}
