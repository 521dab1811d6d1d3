//! Whether two sides are different models and not two forms of one, so that a list of differences would say nothing.
//!
//! Invariant: follows from what the checks compared. A conversion that went wrong leaves sizes and dense values alone, so
//! it is never called another model.

/// How much of two sides differs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unlike {
    /// Sizes that differ: `hidden_size 256 against 512`.
    pub sizes: Vec<String>,
    /// Linears of which most trits differ, and linears that were compared.
    pub linears: (usize, usize),
    /// Dense tensors of which most values differ, and dense tensors that were compared.
    pub dense: (usize, usize),
}

impl Unlike {
    /// Notes two sizes, unless they are the same.
    pub fn size(&mut self, name: &str, expected: usize, found: usize) {
        // rows are padded by some writers
        if expected != found && name != "vocab_size" {
            self.sizes
                .push(format!("{name} {expected} against {found}"));
        }
    }

    /// Notes a linear, by how many of its trits differ.
    pub fn linear(&mut self, differing: usize, trits: usize) {
        note(&mut self.linears, differing * 4 >= trits.max(1));
    }

    /// Notes a dense tensor, by how many of its values differ.
    pub fn dense(&mut self, differing: usize, values: usize) {
        note(&mut self.dense, differing * 2 >= values.max(1));
    }

    /// Why the two sides look like different models, if they do.
    pub fn reason(&self) -> Option<String> {
        let most = |(differing, compared): (usize, usize)| differing * 2 >= compared.max(1);
        let is_other = |pair: (usize, usize)| pair.1 > 0 && most(pair);
        let (linears, dense) = (self.linears, self.dense);
        if !self.sizes.is_empty() && (linears.1 == 0 || most(linears)) {
            return Some(self.sizes.join(", "));
        }
        (is_other(linears) && is_other(dense)).then(|| {
            format!(
                "most values differ in {} of {} linears and in {} of {} dense tensors",
                linears.0, linears.1, dense.0, dense.1
            )
        })
    }
}

fn note((differing, compared): &mut (usize, usize), is_other: bool) {
    *differing += usize::from(is_other);
    *compared += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversion_that_went_wrong_is_not_another_model() {
        let mut wrong_layout = Unlike::default();
        wrong_layout.linear(66, 100);
        wrong_layout.dense(0, 100);
        assert_eq!(wrong_layout.reason(), None);
        let mut other = wrong_layout.clone();
        other.dense = (1, 1);
        assert!(other.reason().is_some());
        let mut shorter = Unlike::default();
        shorter.size("num_hidden_layers", 30, 29);
        shorter.linear(0, 100);
        assert_eq!(shorter.reason(), None, "layers were cut off");
        let mut larger = Unlike::default();
        larger.size("hidden_size", 256, 512);
        assert_eq!(
            larger.reason().as_deref(),
            Some("hidden_size 256 against 512")
        );
        let mut padded = Unlike::default();
        padded.size("vocab_size", 400, 512);
        assert_eq!(padded.reason(), None);
    }
}
