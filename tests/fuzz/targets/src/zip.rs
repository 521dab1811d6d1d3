//! Archives of one pickle, so that a mutation of the pickle gets past the checksum of the archive.
//!
//! Invariant: what is built is a PyTorch archive with stored records.

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    };
    !bytes.iter().fold(u32::MAX, step)
}

/// What both headers of a record say.
fn facts(name: &str, bytes: &[u8]) -> Vec<u8> {
    let len = (bytes.len() as u32).to_le_bytes();
    let mut out = vec![0; 8]; // flags, method, time, date
    out.extend_from_slice(&crc32(bytes).to_le_bytes());
    out.extend_from_slice(&len);
    out.extend_from_slice(&len);
    out.extend_from_slice(&(name.len() as u16).to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    out
}

/// An archive of records.
pub(crate) fn archive(records: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in records {
        let at = (out.len() as u32).to_le_bytes();
        let facts = facts(name, bytes);
        out.extend_from_slice(b"PK\x03\x04\x14\0");
        out.extend_from_slice(&facts);
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(bytes);
        directory.extend_from_slice(b"PK\x01\x02\x14\0\x14\0");
        directory.extend_from_slice(&facts);
        directory.extend_from_slice(&[0; 10]); // comment, disk, attributes
        directory.extend_from_slice(&at);
        directory.extend_from_slice(name.as_bytes());
    }
    let start = (out.len() as u32).to_le_bytes();
    let count = (records.len() as u16).to_le_bytes();
    out.extend_from_slice(&directory);
    out.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    out.extend_from_slice(&count);
    out.extend_from_slice(&count);
    out.extend_from_slice(&(directory.len() as u32).to_le_bytes());
    out.extend_from_slice(&start);
    out.extend_from_slice(&[0, 0]);
    out
}

/// The bytes of the first stored record whose name ends so.
pub(crate) fn record_of<'a>(archive: &'a [u8], end: &str) -> Option<&'a [u8]> {
    let mut at = 0;
    while let Some(found) = archive
        .get(at..)?
        .windows(4)
        .position(|w| w == b"PK\x03\x04")
    {
        at += found;
        let number = |from: usize| -> Option<usize> {
            let bytes = archive.get(at + from..at + from + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
        };
        let (size, lengths) = (number(18)?, number(26)?);
        let (name, extra) = (lengths & 0xffff, lengths >> 16);
        let text = archive.get(at + 30..at + 30 + name)?;
        if text.ends_with(end.as_bytes()) {
            let data = at + 30 + name + extra;
            return archive.get(data..data + size);
        }
        at += 4;
    }
    None
}
