//! What the guest says on its UART, and the few lines of it that the commands here understand.

/// A value that the guest measured.
#[derive(Debug, PartialEq, Eq)]
pub struct Measure {
    /// What was measured.
    pub name: String,
    /// How much.
    pub value: u64,
}

impl Measure {
    /// Reads `measure: NAME VALUE`.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.strip_prefix("measure: ")?.split_whitespace();
        let name = words.next()?.to_owned();
        let value = words.next()?.parse().ok()?;
        Some(Self { name, value })
    }
}

/// The guest's console, line by line.
///
/// Four kinds of line have a meaning: `outcome: pass` or `outcome: fail`, `N passed, N failed`,
/// `measure: NAME VALUE`, and those of checks, of which one that does not apply says `n/a  NAME: `.
#[derive(Debug, Default)]
pub struct Console {
    lines: Vec<String>,
    partial: Vec<u8>,
    outcome: Option<bool>,
    summary: Option<(u64, u64)>,
    measures: Vec<Measure>,
}

impl Console {
    /// Takes more of what came from the UART.
    pub fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                b'\r' => {}
                _ => self.partial.push(byte),
            }
        }
    }

    /// Takes a last line that no line feed ended.
    pub fn finish(&mut self) {
        if !self.partial.is_empty() {
            self.end_line();
        }
    }

    /// Whether the guest said `outcome: pass` or `outcome: fail`; the last word counts.
    pub const fn outcome(&self) -> Option<bool> {
        self.outcome
    }

    /// How many checks passed, of the last summary.
    pub fn passed(&self) -> Option<u64> {
        self.summary.map(|(passed, _)| passed)
    }

    /// How many checks failed, of the last summary.
    pub fn failed(&self) -> Option<u64> {
        self.summary.map(|(_, failed)| failed)
    }

    /// What was measured, in the order of the guest.
    pub fn measures(&self) -> &[Measure] {
        &self.measures
    }

    /// All lines.
    pub fn lines(&self) -> impl Iterator<Item = &str> + Clone {
        self.lines.iter().map(String::as_str)
    }

    /// The last `count` lines.
    pub fn tail(&self, count: usize) -> &[String] {
        &self.lines[self.lines.len().saturating_sub(count)..]
    }

    /// The first line that reports a failed check or a panic.
    pub fn first_complaint(&self) -> Option<&str> {
        let complains = |line: &&String| {
            let line = line.to_ascii_lowercase();
            line.trim_start().starts_with("fail") || line.contains("panic")
        };
        self.lines.iter().find(complains).map(String::as_str)
    }

    /// The line that reports that this check failed, from what was seen on.
    pub fn failure_of(&self, check: &str) -> Option<&str> {
        let of_check = |line: &String| {
            line.trim().strip_prefix("FAIL ")?.strip_prefix(check)?.starts_with(": ").then_some(())
        };
        let line = self.lines.iter().find(|line| of_check(line).is_some())?;
        line.split_once("; seen: ").map(|(_, seen)| seen)
    }

    /// The names of checks that did not apply to the machine, each with its line.
    pub fn not_applicable(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lines().filter_map(|line| {
            let (name, _) = line.strip_prefix("n/a ")?.split_once(": ")?;
            Some((name.trim(), line))
        })
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.partial).into_owned();
        self.partial.clear();
        let text = line.trim();
        match text {
            "outcome: pass" => self.outcome = Some(true),
            "outcome: fail" => self.outcome = Some(false),
            _ => {}
        }
        if let Some(summary) = summary(text) {
            self.summary = Some(summary);
        }
        self.measures.extend(Measure::parse(text));
        self.lines.push(line);
    }
}

/// Reads `N passed, N failed`.
fn summary(text: &str) -> Option<(u64, u64)> {
    let (passed, failed) = text.split_once(" passed, ")?;
    Some((passed.parse().ok()?, failed.strip_suffix(" failed")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(text: &str) -> Console {
        let mut console = Console::default();
        for piece in text.as_bytes().chunks(3) {
            console.feed(piece);
        }
        console.finish();
        console
    }

    #[test]
    fn an_outcome_needs_its_own_line() {
        assert_eq!(console("outcome: pass\r\n").outcome(), Some(true));
        assert_eq!(console("hello\noutcome: fail").outcome(), Some(false));
        assert_eq!(console("the outcome: pass is near\noutcome: passed\n").outcome(), None);
        assert_eq!(console("outcome: pass\noutcome: fail\n").outcome(), Some(false));
    }

    #[test]
    fn the_summary_and_the_measures_are_numbers() {
        let console =
            console("measure: donate-page 1712\n3 passed, 1 failed\nmeasure: boot x\n12 passed, 0 failed\n");
        assert_eq!((console.passed(), console.failed()), (Some(12), Some(0)));
        let [measure] = console.measures() else { panic!("one line is a measure: {console:?}") };
        assert_eq!((&*measure.name, measure.value), ("donate-page", 1712));
    }

    #[test]
    fn a_check_that_failed_is_found_by_its_whole_name() {
        let console = console(
            "pass an ITT: expected a; seen: b; 1 ticks\r\nFAIL an ITT in RAM: expected c; seen: attack worked: d; 2 ticks\r\n",
        );
        assert_eq!(console.failure_of("an ITT in RAM"), Some("attack worked: d; 2 ticks"));
        assert_eq!(console.failure_of("an ITT"), None);
        assert_eq!(console.failure_of("RAM"), None);
    }

    #[test]
    fn checks_that_do_not_apply_are_named() {
        let line = "n/a  a queue: expected a: b; seen: no queue; 1 ticks";
        let console = console(&format!("pass n/a  x: y\r\n{line}\r\n2 checks do not apply\n"));
        assert_eq!(console.not_applicable().collect::<Vec<_>>(), [("a queue", line)]);
    }

    #[test]
    fn bytes_that_are_no_text_do_no_harm() {
        let mut console = Console::default();
        console.feed(&[0xff, 0xfe, b'\n', 0, b'\n']);
        assert_eq!(console.outcome(), None);
        assert_eq!(console.tail(1).len(), 1);
    }
}
