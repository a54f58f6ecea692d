//! Numbers as people type them.

use alloc::format;
use alloc::string::String;

/// Reads `4096`, `0x1000`, `4K` or `2M`.
///
/// # Errors
///
/// It is no such number, or has more than 64 bits; the text says what is right.
pub fn parse(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    let number = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        // `from_str_radix` takes a sign.
        Some(hex) if hex.bytes().all(|digit| digit.is_ascii_hexdigit()) => u64::from_str_radix(hex, 16).ok(),
        None if digits.bytes().all(|digit| digit.is_ascii_digit()) => digits.parse().ok(),
        _ => None,
    };
    number.and_then(|number: u64| number.checked_mul(unit)).ok_or_else(|| {
        format!("'{text}' is no number of up to 64 bits: write for example 4096, 0x1000, 4K or 2M")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal_hexadecimal_or_have_a_unit() {
        for (text, number) in [
            ("0", 0),
            ("4096", 4096),
            ("0x1000", 4096),
            ("4K", 4096),
            ("2m", 2 << 20),
            ("0x10K", 16 << 10),
            ("0xffffffffffffffff", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_shown_with_what_is_right() {
        for text in [
            "",
            "K",
            "0x",
            "-1",
            "+1",
            "0x+1",
            "1.5M",
            "4G",
            "0x10000000000000000",
            "18446744073709551615K",
            "é",
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(&format!("'{text}'")) && error.contains("0x1000"), "{error}");
        }
    }
}
