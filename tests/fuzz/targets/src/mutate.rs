//! Structure-aware mutation: a valid header with one lie.
//!
//! Invariant: what comes out is as long as the place for it at most; the same seed makes the same change.

use serde_json::Value;

/// Changes the first `size` bytes of a buffer; says how many there are then.
pub type Mutator = fn(&mut [u8], usize, u32) -> Option<usize>;

/// A small generator of numbers (xorshift).
struct Random(u64);

impl Random {
    fn new(seed: u32) -> Self {
        Self(u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % most.max(1) as u64) as usize
    }
}

/// A number near something that matters: an end, a power of two, the number itself.
fn lie(random: &mut Random, number: u64, len: usize) -> u64 {
    let near = [
        number,
        0,
        len as u64,
        1 << random.below(64),
        u64::MAX,
        i64::MAX as u64,
        u32::MAX.into(),
        i32::MAX as u64,
        number.wrapping_mul(2),
        number / 2,
        number.wrapping_mul(32),
    ];
    let base = near[random.below(near.len())];
    match random.below(4) {
        0 => base,
        1 => base.wrapping_add(1),
        2 => base.wrapping_sub(1),
        _ => base.wrapping_add(random.next() % 65).wrapping_sub(32),
    }
}

/// Where the numbers of a GGUF header are: offset and bytes.
struct Gguf<'a> {
    bytes: &'a [u8],
    at: usize,
    numbers: Vec<(usize, usize)>,
}

impl Gguf<'_> {
    fn number(&mut self, len: usize) -> Option<u64> {
        let bytes = self.bytes.get(self.at..self.at + len)?;
        self.numbers.push((self.at, len));
        self.at += len;
        let mut all = [0; 8];
        all[..len].copy_from_slice(bytes);
        Some(u64::from_le_bytes(all))
    }

    fn skip(&mut self, len: u64) -> Option<()> {
        let end = self.at.checked_add(usize::try_from(len).ok()?)?;
        self.at = end;
        (end <= self.bytes.len()).then_some(())
    }

    fn string(&mut self) -> Option<()> {
        let len = self.number(8)?;
        self.skip(len)
    }

    fn value(&mut self, kind: u64, depth: usize) -> Option<()> {
        match kind {
            0 | 1 | 7 => self.number(1).map(drop),
            2 | 3 => self.number(2).map(drop),
            4..=6 => self.number(4).map(drop),
            10..=12 => self.number(8).map(drop),
            8 => self.string(),
            9 if depth < 4 => {
                let (kind, count) = (self.number(4)?, self.number(8)?);
                for _ in 0..count.min(4096) {
                    self.value(kind, depth + 1)?;
                }
                Some(())
            }
            _ => None,
        }
    }

    fn header(&mut self) -> Option<()> {
        self.at = 4;
        self.number(4)?;
        let (tensors, entries) = (self.number(8)?, self.number(8)?);
        for _ in 0..entries.min(4096) {
            self.string()?;
            let kind = self.number(4)?;
            self.value(kind, 0)?;
        }
        for _ in 0..tensors.min(4096) {
            self.string()?;
            let sizes = self.number(4)?;
            for _ in 0..sizes.min(8) {
                self.number(8)?;
            }
            self.number(4)?;
            self.number(8)?;
        }
        Some(())
    }
}

/// One number of a GGUF header becomes another.
pub fn gguf_with_a_lie(data: &mut [u8], size: usize, seed: u32) -> Option<usize> {
    let mut random = Random::new(seed);
    let bytes = data.get(..size)?;
    let mut header = Gguf {
        bytes,
        at: 0,
        numbers: Vec::new(),
    };
    // an error ends the list at the number where the header is cut off
    let _ = header.header();
    let numbers = header.numbers;
    let (at, len) = *numbers.get(random.below(numbers.len()))?;
    let mut old = [0; 8];
    old[..len].copy_from_slice(&bytes[at..at + len]);
    // a type for a type, or a number of another place
    let new = match random.below(4) {
        0 => random.next() % 48,
        1 => {
            let (other, len) = numbers[random.below(numbers.len())];
            let mut found = [0; 8];
            found[..len].copy_from_slice(&bytes[other..other + len]);
            u64::from_le_bytes(found)
        }
        _ => lie(&mut random, u64::from_le_bytes(old), size),
    };
    data[at..at + len].copy_from_slice(&new.to_le_bytes()[..len]);
    Some(size)
}

/// Every value of a JSON tree, parents first.
fn values<'v>(value: &'v mut Value, number: &mut usize, wanted: usize) -> Option<&'v mut Value> {
    if *number == wanted {
        return Some(value);
    }
    *number += 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|v| values(v, number, wanted)),
        Value::Object(map) => map.values_mut().find_map(|v| values(v, number, wanted)),
        _ => None,
    }
}

fn count(value: &Value) -> usize {
    let below: usize = match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    };
    1 + below
}

const TYPES: [&str; 20] = [
    "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16", "I32", "U32", "F32",
    "F64", "I64", "U64", "F4", "F6_E2M3", "F8_E8M0", "C64", "",
];

fn change(value: &mut Value, random: &mut Random, len: usize) {
    let changed = match value {
        Value::Number(number) => Value::from(lie(random, number.as_u64().unwrap_or(0), len)),
        Value::String(_) if random.below(2) == 0 => Value::from(TYPES[random.below(TYPES.len())]),
        Value::String(text) => Value::from(format!("{text}{}", random.below(10))),
        Value::Array(list) if random.below(2) == 0 => {
            let again = list.last().cloned();
            list.extend(again);
            return;
        }
        Value::Array(list) => {
            list.pop();
            return;
        }
        Value::Object(map) => {
            let names: Vec<String> = map.keys().cloned().collect();
            let Some(name) = names.get(random.below(names.len())) else {
                return;
            };
            let part = map.get(name).cloned().unwrap_or_default();
            match random.below(3) {
                0 => map.remove(name),
                1 => map.insert(format!("{name}.scale"), part),
                _ => map.insert("x".to_owned(), part),
            };
            return;
        }
        Value::Null => Value::from(true),
        Value::Bool(_) => Value::Null,
    };
    *value = changed;
}

/// One value of a safetensors header becomes another; the length in front is right, or is the lie.
pub fn safetensors_with_a_lie(data: &mut [u8], size: usize, seed: u32) -> Option<usize> {
    let mut random = Random::new(seed);
    let bytes = data.get(..size)?;
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let length = u64::from_le_bytes(*length);
    if random.below(8) == 0 {
        let new = lie(&mut random, length, size);
        data[..8].copy_from_slice(&new.to_le_bytes());
        return Some(size);
    }
    let (text, tensors) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    let mut header: Value = serde_json::from_slice(text).ok()?;
    let wanted = random.below(count(&header));
    change(values(&mut header, &mut 0, wanted)?, &mut random, size);
    let mut out = header.to_string().into_bytes();
    if random.below(4) > 0 {
        out.resize(out.len().next_multiple_of(8), b' ');
    }
    let mut all = (out.len() as u64).to_le_bytes().to_vec();
    all.append(&mut out);
    all.extend_from_slice(tensors);
    all.truncate(data.len());
    data[..all.len()].copy_from_slice(&all);
    Some(all.len())
}
