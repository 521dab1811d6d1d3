//! The two orders of the rows of `q_proj` and `k_proj`.
//!
//! Invariant: each order is the inverse of the other, for heads of an even number of rows.

use bitnet_ternary::TernaryMatrix;

/// Rows of `q_proj` or `k_proj` from GGUF's `llama` order, where rotary pairs are neighbours, to that
/// of the Hugging Face checkpoint, where they are `head_dim / 2` apart.
pub fn hf_from_gguf_rows(matrix: &TernaryMatrix, head_dim: usize) -> TernaryMatrix {
    matrix.permute_rows(|row| gguf_row(row, head_dim))
}

/// The inverse of [`hf_from_gguf_rows`].
pub fn gguf_from_hf_rows(matrix: &TernaryMatrix, head_dim: usize) -> TernaryMatrix {
    matrix.permute_rows(|row| hf_row(row, head_dim))
}

/// Where GGUF's `llama` keeps a row of the Hugging Face matrix (`formats/container/gguf.md`).
pub fn gguf_row(row: usize, head_dim: usize) -> usize {
    let (head, at) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (at % half) + at / half
}

/// The row of the Hugging Face matrix that GGUF's `llama` keeps in place `row`.
pub fn hf_row(row: usize, head_dim: usize) -> usize {
    let (head, at) = (row / head_dim, row % head_dim);
    head * head_dim + at % 2 * (head_dim / 2) + at / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_ternary::Scales;

    #[test]
    fn the_row_orders_are_inverses_and_as_the_page_says() {
        let rows = 16;
        let trits: Vec<i8> = (0..rows * 3).map(|i| (i * i % 3) as i8 - 1).collect();
        let scales = Scales::PerRow((0..rows).map(|r| r as f32).collect());
        let hf = TernaryMatrix::new(rows, 3, trits, scales).unwrap();
        let gguf = gguf_from_hf_rows(&hf, 8);
        assert_eq!(hf_from_gguf_rows(&gguf, 8), hf);
        // HF row h*d + j*(d/2) + i moves to h*d + 2*i + j
        for (h, j, i) in [(0, 0, 3), (1, 1, 2), (1, 0, 0)] {
            assert_eq!(
                gguf.scales().at(h * 8 + 2 * i + j, 0, 3),
                (h * 8 + j * 4 + i) as f32
            );
        }
    }
}
