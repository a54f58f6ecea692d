//! A line of text without an allocator.

use core::fmt;

/// At most [`Text::CAPACITY`] bytes of UTF-8; what does not fit is cut off.
#[derive(Clone, Copy)]
pub struct Text {
    bytes: [u8; Self::CAPACITY],
    length: usize,
    cut: bool,
}

impl Text {
    /// The most bytes a text holds.
    pub const CAPACITY: usize = 232;

    /// No text.
    pub const fn new() -> Self {
        Self { bytes: [0; Self::CAPACITY], length: 0, cut: false }
    }

    /// The text of a format.
    pub fn of(arguments: fmt::Arguments<'_>) -> Self {
        let mut text = Self::new();
        // A text never refuses: it cuts off.
        let _ = fmt::write(&mut text, arguments);
        text
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // Only whole characters are ever stored.
        self.bytes.get(..self.length).and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or("")
    }
}

impl Default for Text {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.cut {
            return Ok(());
        }
        let mut fits = text.len().min(Self::CAPACITY - self.length);
        self.cut = fits < text.len();
        while !text.is_char_boundary(fits) {
            fits -= 1;
        }
        let (Some(place), Some(part)) =
            (self.bytes.get_mut(self.length..self.length + fits), text.as_bytes().get(..fits))
        else {
            return Ok(());
        };
        place.copy_from_slice(part);
        self.length += fits;
        Ok(())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::String;

    #[test]
    fn a_text_that_is_too_long_is_cut_between_characters() {
        let long: String = "ä".repeat(Text::CAPACITY);
        let text = Text::of(format_args!("x{long}y"));
        assert_eq!(text.as_str().len(), Text::CAPACITY - 1);
        assert!(text.as_str().starts_with("xä") && text.as_str().ends_with('ä'));
    }

    #[test]
    fn pieces_follow_each_other() {
        assert_eq!(Text::of(format_args!("{}-{}", 1, "two")).as_str(), "1-two");
        assert_eq!(Text::new().as_str(), "");
    }
}
