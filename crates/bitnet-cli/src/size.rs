//! Sizes and times as people write and read them.
//!
//! Invariant: what is printed here is rounded for people; scripts get exact numbers from `--json`.

/// `1187801280` as `1.19 GB` (powers of 1000, as disks and llama.cpp's split sizes count).
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 10.0 {
        2
    } else {
        usize::from(value < 100.0)
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// `0.42 s`, `12.3 s`, `2 min 05 s`.
pub fn human_duration(seconds: f64) -> String {
    if seconds < 9.995 {
        format!("{seconds:.2} s")
    } else if seconds < 99.95 {
        format!("{seconds:.1} s")
    } else {
        let whole = seconds.round() as u64;
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}

/// `5GB`, `500M`, `1GiB`, `4096`: bytes. M and G alone count in powers of 1000.
///
/// # Errors
/// One line saying what was expected, for clap's `value_parser`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let expected = || format!("expected a size such as 500M, 5GB or 1GiB, found `{text}`");
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1000_u64.pow(2),
        "g" | "gb" => 1000_u64.pow(3),
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(expected()),
    };
    number
        .checked_mul(factor)
        .filter(|&n| n > 0)
        .ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_print() {
        assert_eq!(human_bytes(999), "999 B");
        assert_eq!(human_bytes(1_187_801_280), "1.19 GB");
        assert_eq!(human_bytes(999_999), "1.00 MB");
        assert_eq!(human_bytes(u64::MAX), "18446744 TB");
        assert_eq!(parse_size("5GB"), Ok(5_000_000_000));
        assert_eq!(parse_size("1 GiB"), Ok(1 << 30));
        assert_eq!(parse_size("4096"), Ok(4096));
        for bad in [
            "",
            "0",
            "-1",
            "1.5G",
            "99999999999999999999",
            "999999999999GB",
            "5X",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(human_duration(125.2), "2 min 05 s");
    }
}
