//! Gate 6: the experts of every token are the recorded ones.
//!
//! Invariant: the order of a token's experts does not count, only which they are and their weights. A token whose last
//! chosen and first rejected expert are as good as equal has no right choice.

use crate::reference::golden::Golden;
use crate::verdict::Difference;
use bitnet_formats::FormatError;

/// Difference of two logits of a router below which float arithmetic decides which is larger.
const TIE: f32 = 1e-5;
/// Largest difference of a weight.
const MOST: f32 = 1e-4;

/// The experts of one token: number and weight.
pub type Chosen = Vec<(u32, f32)>;

/// What was compared.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Experts {
    /// Choices that are the recorded ones.
    pub equal: usize,
    /// Tokens without a right choice.
    pub ties: usize,
    /// Largest difference of a weight.
    pub weight: f32,
    /// What differs, the first of each prompt and layer.
    pub differences: Vec<Difference>,
}

/// Compares the experts of all recorded prompts. `routing` answers, for a prompt and layer by layer, the experts of every
/// token; none for layers without experts.
///
/// # Errors
/// Those of the implementation.
pub fn experts(
    golden: &Golden,
    mut routing: impl FnMut(&[u32]) -> Result<Vec<Vec<Chosen>>, FormatError>,
) -> Result<Experts, FormatError> {
    let mut compared = Experts::default();
    for prompt in &golden.prompts {
        let mut layers = golden.routing.iter().filter(|r| r.prompt == prompt.name);
        let Some(first) = layers.next() else {
            continue;
        };
        let found = routing(&prompt.ids).map_err(|e| e.in_tensor(&prompt.name))?;
        for recorded in std::iter::once(first).chain(layers) {
            let place = format!("{}.layer{}", prompt.name, recorded.layer);
            let found = found.get(recorded.layer).map_or(&[][..], Vec::as_slice);
            if found.len() != recorded.tokens() {
                let what = format!(
                    "expected experts of {} tokens, found those of {}",
                    recorded.tokens(),
                    found.len()
                );
                compared.differences.push(Difference::new(place, what));
                continue;
            }
            let mut first = None;
            for (token, found) in found.iter().enumerate() {
                let expected = recorded.chosen(token);
                if recorded.gap(token) < TIE {
                    compared.ties += 1;
                    continue;
                }
                match compare(&expected, found) {
                    Ok(weight) => {
                        compared.equal += expected.len();
                        compared.weight = compared.weight.max(weight);
                    }
                    Err(what) => first = first.or(Some(format!("token {token}: {what}"))),
                }
            }
            let what = first.map(|what| Difference::new(place, what));
            compared.differences.extend(what);
        }
    }
    Ok(compared)
}

/// The largest difference of a weight, if the experts are the same.
fn compare(expected: &Chosen, found: &Chosen) -> Result<f32, String> {
    let sorted = |chosen: &Chosen| {
        let mut chosen = chosen.clone();
        chosen.sort_by_key(|(expert, _)| *expert);
        chosen
    };
    let (expected, found) = (sorted(expected), sorted(found));
    let numbers = |chosen: &Chosen| chosen.iter().map(|c| c.0).collect::<Vec<_>>();
    let (e, f) = (numbers(&expected), numbers(&found));
    if e != f {
        return Err(format!("expected experts {e:?}, found {f:?}"));
    }
    let apart = expected.iter().zip(&found).map(|(e, f)| (e.1 - f.1).abs());
    // `max` passes over what is no number
    let most = apart.fold(0.0f32, |most, apart| match apart.is_nan() {
        true => f32::INFINITY,
        false => most.max(apart),
    });
    match most <= MOST {
        true => Ok(most),
        false => Err(format!(
            "weights of experts {e:?} differ by {most:.1e}, expected at most {MOST:.0e}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_experts_does_not_count_and_their_weights_do() {
        let expected = vec![(3, 0.7), (1, 0.3)];
        assert_eq!(compare(&expected, &vec![(1, 0.3), (3, 0.7)]), Ok(0.0));
        assert!(compare(&expected, &vec![(1, 0.7), (3, 0.3)]).is_err());
        assert!(compare(&expected, &vec![(2, 0.3), (3, 0.7)]).is_err());
        assert!(compare(&expected, &vec![(3, 0.7)]).is_err());
        assert!(compare(&expected, &vec![(1, f32::NAN), (3, 0.7)]).is_err());
    }
}
