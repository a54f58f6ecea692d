//! What software did that the architecture does not allow, or that silicon would not forgive.

/// The list of violations. A test ends with [`Violations::none`].
#[derive(Debug, Default)]
pub struct Violations(Vec<String>);

impl Violations {
    /// Records one, in words. Only the first 100 are kept.
    pub fn record(&mut self, text: impl Into<String>) {
        if self.0.len() < 100 {
            self.0.push(text.into());
        }
    }

    /// All of them, oldest first.
    pub fn all(&self) -> &[String] {
        &self.0
    }

    /// Takes them out: for tests that want to see one.
    pub fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.0)
    }
}
