//! The origin of a web page, as `--allow-origin` names it.
//!
//! Invariant: what is accepted is what a browser sends for the origin, letter for letter, or `*`.

/// Reads an origin: a scheme, a host and a port that is not the usual one.
pub fn origin(text: &str) -> Result<String, String> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    let expected = |found: &str| {
        format!("expected * or a scheme and a host, as in https://chat.example, found {found}")
    };
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(match text {
            "" => expected("nothing"),
            _ => expected("no ://"),
        });
    };
    let scheme = scheme.to_ascii_lowercase();
    let in_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(in_scheme) {
        return Err(expected("another scheme"));
    }
    if rest.contains(['/', '?', '#', '\\']) {
        return Err(expected("a path behind the host, which an origin has not"));
    }
    let rest = rest.to_ascii_lowercase();
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (&*rest, None),
    };
    let in_address = |c: char| c.is_ascii_hexdigit() || ":.".contains(c);
    let in_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let is_host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(address) => !address.is_empty() && address.chars().all(in_address),
        None => !host.is_empty() && host.chars().all(in_name),
    };
    if !is_host {
        return Err(expected("no host"));
    }
    let usual = match scheme.as_str() {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    let port = match port.map(str::parse::<u16>) {
        None => None,
        Some(Ok(port)) => Some(port).filter(|port| Some(*port) != usual),
        Some(Err(_)) => return Err(expected("another port than 0 to 65535")),
    };
    Ok(match port {
        None => format!("{scheme}://{host}"),
        Some(port) => format!("{scheme}://{host}:{port}"),
    })
}

#[cfg(test)]
mod tests {
    use super::origin;

    #[test]
    fn an_origin_is_what_a_browser_sends() {
        for (text, found) in [
            ("*", "*"),
            ("https://a.example", "https://a.example"),
            ("HTTPS://A.example:443", "https://a.example"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("http://[::1]", "http://[::1]"),
            ("chrome-extension://abc", "chrome-extension://abc"),
        ] {
            assert_eq!(origin(text).as_deref(), Ok(found));
        }
        for text in [
            "",
            "null",
            "a.example",
            "https://",
            "https://a.example/",
            "https://a.example/x",
            "https://a b",
            "https://u@a.example",
            "https://a.example:x",
            "https://a.example:",
            "https://*.example",
            "://a",
        ] {
            assert!(origin(text).is_err(), "{text}");
        }
    }
}
