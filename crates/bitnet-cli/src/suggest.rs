//! What was probably meant by a word that is not known.
//!
//! Invariant: a suggestion is near the word; where nothing is, there is none. A wrong suggestion is worse than a list.

/// The known words that `word` probably stands for, nearest first: one in most cases, several that are equally near, or
/// none.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let known: Vec<&str> = known.into_iter().collect();
    let plain = normal(word);
    if plain.len() < 2 {
        return Vec::new();
    }
    // the same word but for case, blanks and punctuation
    let same: Vec<&str> = known
        .iter()
        .filter(|k| normal(k) == plain)
        .copied()
        .collect();
    if !same.is_empty() {
        return same;
    }
    // a name without its first or last word: `i2_s` for `gguf-i2_s`, `avx512` for `avx512_vnni`
    let words = |text: &str| -> Vec<String> {
        let words = text.split(['-', '_', '.', ' ']).map(normal);
        words.filter(|w| !w.is_empty()).collect()
    };
    let own = words(word);
    let part: Vec<&str> = known
        .iter()
        .filter(|k| {
            let of = words(k);
            of.ends_with(&own) || of.starts_with(&own) || normal(k).ends_with(&plain)
        })
        .copied()
        .collect();
    if !part.is_empty() && part.len() <= 4 {
        return part;
    }
    let close = |k: &&str| {
        let other = normal(k);
        let distance = distance(&plain, &other);
        let shorter = plain.chars().count().min(other.chars().count());
        (distance <= (shorter / 3).clamp(1, 3) && distance < shorter).then_some(distance)
    };
    let least = known.iter().filter_map(close).min();
    known
        .iter()
        .filter(|k| least.is_some() && close(k) == least)
        .copied()
        .collect()
}

/// `did you mean gguf-i2_s?`, if something is near.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let nearest = nearest(word, known);
    match nearest.as_slice() {
        [] => None,
        several => Some(format!("did you mean {}?", several.join(" or "))),
    }
}

/// Lower case, letters and digits alone.
fn normal(text: &str) -> String {
    let kept = text.chars().filter(|c| c.is_alphanumeric());
    kept.flat_map(char::to_lowercase).collect()
}

/// Insertions, deletions, replacements and swaps of neighbors that make one word the other.
fn distance(a: &str, b: &str) -> usize {
    // long words are nobody's typing errors
    let (a, b): (Vec<char>, Vec<char>) =
        (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let replaced = last[j] + usize::from(a[i] != b[j]);
            let mut least = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let targets = [
            "gguf-i2_s",
            "gguf-tq1_0",
            "gguf-tq2_0",
            "gguf-q2_0",
            "gguf-pq2_0",
            "gguf-bf16",
            "hf-bf16",
            "hf-packed",
            "packed",
        ];
        let of = |word: &str| nearest(word, targets);
        for word in [
            "i2_s",
            "I2_S",
            "gguf-i2s",
            "gguf_i2_s",
            "GGUF-I2_S",
            "i2s",
            "gguf-i2_ss",
            "guff-i2_s",
        ] {
            assert_eq!(of(word), ["gguf-i2_s"], "{word}");
        }
        assert_eq!(of("tq2_0"), ["gguf-tq2_0"]);
        assert_eq!(of("bf16"), ["gguf-bf16", "hf-bf16"]);
        assert_eq!(of("hf-pakced"), ["hf-packed"]);
        for word in [
            "q4_k_m",
            "xyz",
            "",
            "-",
            "gptq",
            "awq",
            "int8",
            "onnx",
            "gguf-q4_k_m",
        ] {
            assert!(of(word).is_empty(), "{word}: {:?}", of(word));
        }
        let commands = ["inspect", "list", "bench", "logits"];
        assert_eq!(nearest("isnpect", commands), ["inspect"]);
        assert_eq!(nearest("bnech", commands), ["bench"]);
        assert!(nearest("hello", commands).is_empty());
        assert_eq!(
            did_you_mean("Bench", commands).unwrap(),
            "did you mean bench?"
        );
    }
}
