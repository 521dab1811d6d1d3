//! Which layout a type id means in one file, where releases of different programs gave one number
//! to several (`formats/README.md`, "Type-id collisions").
//!
//! Invariant: decided by the extents of **all** tensors of the id, the distance from each to the
//! next, and by the end of the file only where these leave several; never by the id, a name or
//! `general.file_type`. Where the evidence does not decide, the candidates are named and the user is
//! asked. A layout is a candidate because of its row in [`PACKINGS`] or [`FOREIGN`], nothing else.

use super::{LAYOUT_KEY, encoding_of, malformed, stored_len};
use crate::encoding::Encoding;
use crate::error::{ErrorCode, FormatError};
use crate::foreign::{ForeignType, foreign_types};
use crate::packing::{PACKINGS, Packing, packing_by_name};
use crate::tensor_file::{Metadata, TensorInfo};
use std::collections::BTreeMap;

/// One tensor of the id in question.
struct Claim<'a> {
    name: &'a str,
    shape: &'a [usize],
    /// Bytes to the next tensor, its padding included; or to the end of the file.
    extent: Extent,
}

#[derive(Clone, Copy)]
enum Extent {
    ToNext(u64),
    ToEnd(u64),
}

/// A meaning of the id.
#[derive(Clone, Copy)]
enum Candidate {
    Packing(&'static dyn Packing),
    Foreign(&'static ForeignType),
}

impl Candidate {
    fn name(&self) -> &'static str {
        match self {
            Self::Packing(p) => p.name(),
            Self::Foreign(f) => f.name,
        }
    }

    /// `None` for shapes that the layout does not have.
    fn len(&self, shape: &[usize]) -> Option<u64> {
        match self {
            Self::Packing(p) => stored_len(Encoding::Ternary(*p), shape).ok().flatten(),
            Self::Foreign(f) => f.stored_len(shape),
        }
    }

    fn encoding(&self) -> Encoding {
        match self {
            Self::Packing(p) => Encoding::Ternary(*p),
            Self::Foreign(f) => Encoding::Foreign(f),
        }
    }

    /// Whether this is a layout beside one of the same page that is written, or whose name it only adds to.
    fn is_sibling_of(&self, other: &Self) -> bool {
        let stem = |name: &'static str| name.split('-').next();
        match (self, other) {
            (Self::Packing(a), Self::Packing(b)) => {
                let more = a.name().strip_prefix(b.name());
                stem(a.name()) == stem(b.name())
                    && !a.is_writable()
                    && (b.is_writable() || more.is_some_and(|more| more.starts_with('-')))
            }
            _ => false,
        }
    }
}

fn claims_id(packing: &dyn Packing, id: u32) -> bool {
    packing.gguf_type() == Some(id) || packing.gguf_aliases().contains(&id)
}

/// Whether an id has several meanings, so that the tensors have to tell.
fn is_contested(id: u32) -> bool {
    let packings = PACKINGS.iter().filter(|p| claims_id(**p, id)).count();
    let foreign = foreign_types(id).count();
    packings.saturating_add(foreign) > 1
}

/// What the file says about its own packing, in the words of [`packing_by_name`].
pub(super) fn recorded_layout(
    metadata: &Metadata,
) -> Result<Option<&'static dyn Packing>, FormatError> {
    let Some(value) = metadata.get(LAYOUT_KEY) else {
        return Ok(None);
    };
    match value.as_str().and_then(packing_by_name) {
        Some(packing) => Ok(Some(packing)),
        None => Err(malformed("expected the name of a packing").in_tensor(LAYOUT_KEY)),
    }
}

/// What a tensor info says of its place and type.
pub(super) struct Placed<'a> {
    pub(super) name: &'a str,
    pub(super) shape: &'a [usize],
    pub(super) id: u32,
    /// From the start of the data section.
    pub(super) offset: u64,
}

/// What the type ids of `placed`, all tensors of one file in its order, mean to a reader.
pub(super) fn meanings<'a>(
    placed: impl IntoIterator<Item = Placed<'a>>,
    data_len: u64,
    alignment: u64,
    layout: Option<&'static dyn Packing>,
) -> Result<BTreeMap<u32, Encoding>, FormatError> {
    let mut by_id: BTreeMap<u32, Vec<Claim<'_>>> = BTreeMap::new();
    let mut placed = placed.into_iter().peekable();
    while let Some(info) = placed.next() {
        let claims = by_id.entry(info.id).or_default();
        if !is_contested(info.id) {
            continue;
        }
        // an extent that makes no sense fits nothing; the layout is checked afterwards
        let extent = match placed.peek() {
            Some(next) => Extent::ToNext(next.offset.saturating_sub(info.offset)),
            None => Extent::ToEnd(data_len.saturating_sub(info.offset)),
        };
        claims.push(Claim {
            name: info.name,
            shape: info.shape,
            extent,
        });
    }
    let meaning = |(id, claims): (u32, Vec<_>)| Ok((id, resolve(id, &claims, alignment, layout)?));
    by_id.into_iter().map(meaning).collect()
}

/// What `id` means for the tensors in `claims`, all that have it. `layout`: what the user or the
/// file's own metadata says, where it is a layout of this id.
fn resolve(
    id: u32,
    claims: &[Claim<'_>],
    alignment: u64,
    layout: Option<&'static dyn Packing>,
) -> Result<Encoding, FormatError> {
    if let Some(layout) = layout.filter(|l| claims_id(*l, id)) {
        return Ok(Encoding::Ternary(layout));
    }
    let packings = PACKINGS.iter().filter(|p| claims_id(**p, id));
    let all: Vec<Candidate> = packings
        .map(|p| Candidate::Packing(*p))
        .chain(foreign_types(id).map(Candidate::Foreign))
        .collect();
    // no extent tells a sibling of the same length: the first is taken, until somebody looks at the data
    let differ = |a: &Candidate, b: &Candidate| {
        let lens = claims.iter().map(|c| a.len(c.shape).zip(b.len(c.shape)));
        lens.flatten().any(|(a, b)| a != b)
    };
    let hidden = |a: &&Candidate| all.iter().any(|b| a.is_sibling_of(b) && !differ(a, b));
    let mut left: Vec<Candidate> = all.iter().filter(|a| !hidden(a)).copied().collect();
    match left.as_slice() {
        [] => return Ok(encoding_of(id)),
        // a size that does not fit is damage, unless the id may be another program's
        [Candidate::Foreign(f)] if !f.is_shared => return Ok(Encoding::Foreign(f)),
        [Candidate::Packing(_)] => return Ok(encoding_of(id)),
        _ => {}
    }
    let padded = |len: u64| len.checked_next_multiple_of(alignment);
    let with_elements = |c: &&Claim<'_>| !c.shape.contains(&0);
    let fits = |candidate: &Candidate, at_end: bool| {
        claims.iter().filter(with_elements).all(|c| {
            let len = candidate.len(c.shape);
            match c.extent {
                Extent::ToNext(bytes) => len.and_then(padded) == Some(bytes),
                // the last tensor need not be padded
                Extent::ToEnd(bytes) => {
                    len.is_some()
                        && (!at_end || len == Some(bytes) || len.and_then(padded) == Some(bytes))
                }
            }
        })
    };
    left.retain(|c| fits(c, false));
    if left.iter().any(|c| fits(c, true)) {
        left.retain(|c| fits(c, true));
    }
    match left.as_slice() {
        // whatever we assume does not fit either, and its length will say how
        [] => Ok(encoding_of(id)),
        [one] => Ok(one.encoding()),
        several if claims.iter().any(|c| with_elements(&c)) => Err(undecided(id, claims, several)),
        _ => Ok(encoding_of(id)),
    }
}

/// The type id of a tensor's type that other types have, too, and the names of those.
pub fn gguf_type_rivals(info: &TensorInfo) -> Option<(u32, Vec<&'static str>)> {
    let (own, ids, taken) = match info.encoding {
        Encoding::Ternary(taken) => {
            let own = taken.gguf_type()?;
            let ids = std::iter::once(own).chain(taken.gguf_aliases().iter().copied());
            (own, ids.collect(), Some(taken.name()))
        }
        Encoding::Foreign(taken) => (taken.id, vec![taken.id], Some(taken.name)),
        Encoding::Unknown(id) => (id, vec![id], None),
        _ => return None,
    };
    let packings = PACKINGS
        .iter()
        .filter(|p| ids.iter().any(|id| claims_id(**p, *id)));
    let foreign = ids.iter().flat_map(|id| foreign_types(*id));
    let names = packings.map(|p| p.name()).chain(foreign.map(|f| f.name));
    let others: Vec<&'static str> = names.filter(|name| Some(*name) != taken).collect();
    (!others.is_empty()).then_some((own, others))
}

fn undecided(id: u32, claims: &[Claim<'_>], left: &[Candidate]) -> FormatError {
    let names: Vec<&str> = left.iter().map(Candidate::name).collect();
    let names = names.join(", ");
    let message = format!("type {id} may be {names}: the distances between tensors fit each");
    let error = FormatError::new(ErrorCode::UnknownType, message);
    let error = match claims.first() {
        Some(claim) => error.in_tensor(claim.name),
        None => error,
    };
    error.hint("say which with --layout NAME")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(id: u32, claims: &[(&[usize], Extent)]) -> Result<String, FormatError> {
        let claims: Vec<Claim<'_>> = claims
            .iter()
            .map(|&(shape, extent)| Claim {
                name: "a",
                shape,
                extent,
            })
            .collect();
        resolve(id, &claims, 32, None).map(|e| e.name())
    }

    fn next(id: u32, shape: &[usize], bytes: u64) -> String {
        name_of(id, &[(shape, Extent::ToNext(bytes))]).expect("decided")
    }

    #[test]
    fn extents_decide() {
        // the two numbers of every bug report
        let output: &[usize] = &[248_320, 5120];
        assert_eq!(next(42, output, 357_580_800), "q2_0");
        assert_eq!(next(42, output, 337_715_200), "q2_0-g128");
        for id in [40, 42, 43] {
            assert_eq!(next(id, &[2560, 2560], 2560 * 10 * 42), "stq1_0");
        }
        assert_eq!(next(40, &[2560, 2560], 2560 * 10 * 144), "nvfp4");
        assert_eq!(next(40, &[2560, 2560], 2560 * 80 * 6), "q1_0-g32");
        assert_eq!(next(41, &[2560, 2560], 2560 * 5 * 72), "q1_0");
        assert_eq!(next(41, &[2560, 2560], 2560 * 5 * 130), "angelslim_2bit");
        for id in [39, 42] {
            let tl2 = packing_by_name("tl2").expect("a packing");
            let bytes = tl2.packed_len(2560, 2560).expect("a shape of tl2");
            assert_eq!(next(id, &[2560, 2560], bytes), "tl2");
        }
        assert_eq!(next(39, &[2560, 2560], 2560 * 80 * 17), "mxfp4");
        // one meaning here, and a size that does not fit is for the length to say; other programs have others
        assert_eq!(next(12, &[4, 256], 7), "q4_k");
        assert_eq!(next(40, &[4, 64], 160), "nvfp4");
        assert_eq!(next(40, &[4, 64], 96), "type-40");
        // what is in no table stays unknown; what is alone is not asked about
        assert_eq!(next(77, &[2560, 2560], 1), "type-77");
        assert_eq!(next(142, &[2560, 2560], 1), "pq2_0");
        // siblings that no length tells apart: the written one, also where only they have the shape
        assert_eq!(next(36, &[4, 256], 288), "i2_s");
        assert_eq!(next(36, &[4, 16], 48), "i2_s");
    }

    #[test]
    fn the_last_tensor_counts_where_the_others_leave_several() {
        let small: &[usize] = &[1, 128]; // 36 and 34 bytes: both are padded to 64
        let end = |bytes| [(small, Extent::ToNext(64)), (small, Extent::ToEnd(bytes))];
        assert_eq!(name_of(42, &end(36)).as_deref(), Ok("q2_0"));
        assert_eq!(name_of(42, &end(34)).as_deref(), Ok("q2_0-g128"));
        let e = name_of(42, &end(64)).expect_err("padded, so undecided");
        assert_eq!(e.code, ErrorCode::UnknownType);
        assert!(e.message.contains("q2_0, q2_0-g128"), "{e}");
        assert!(e.hint.is_some_and(|h| h.contains("--layout")));
        let large: &[usize] = &[16, 128];
        let both = [
            (small, Extent::ToNext(64)),
            (large, Extent::ToNext(16 * 34)),
        ];
        assert_eq!(name_of(42, &both).as_deref(), Ok("q2_0-g128"));
        // nothing fits: the error comes from the length of what is assumed
        assert_eq!(next(42, large, 32), "q2_0");
        assert_eq!(
            name_of(42, &[(&[0, 128], Extent::ToNext(0))]).as_deref(),
            Ok("q2_0")
        );
    }

    #[test]
    fn what_is_told_is_believed_where_it_is_of_the_id() {
        let claims = [Claim {
            name: "a",
            shape: &[1, 128],
            extent: Extent::ToEnd(64),
        }];
        let told = |id, name| {
            let layout = packing_by_name(name);
            assert!(layout.is_some(), "{name}");
            resolve(id, &claims, 32, layout).map(|e| e.name())
        };
        assert_eq!(told(42, "q2_0-g128").as_deref(), Ok("q2_0-g128"));
        assert_eq!(told(42, "tl2").as_deref(), Ok("tl2"));
        assert_eq!(told(38, "tl1-64-64-32").as_deref(), Ok("tl1-64-64-32"));
        assert_eq!(told(36, "tl1-64-64-32").as_deref(), Ok("i2_s"));
        assert!(told(42, "i2_s").is_err());
    }
}
