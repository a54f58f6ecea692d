//! Lines that were run, by file, without those of tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Files and folders of tests, and of what only they use.
const TESTS: [&str; 5] = ["tests", "tests.rs", "testing.rs", "fake.rs", "fuzzing.rs"];
/// What runs on no build machine.
const IMAGE: [&str; 2] = ["image", "main.rs"];

/// A source file, and for each of its lines that has code whether it was run.
#[derive(Debug)]
pub struct File {
    /// From the top of the tree.
    pub path: String,
    lines: BTreeMap<usize, bool>,
}

/// All files.
#[derive(Debug)]
pub struct Lines(Vec<File>);

impl Lines {
    /// Reads what `llvm-cov export --format=lcov` says of the tree at `root`.
    pub fn of(root: &Path, lcov: &str) -> Result<Self> {
        let mut files = Vec::new();
        let mut file: Option<File> = None;
        for line in lcov.lines() {
            if let Some(path) = line.strip_prefix("SF:") {
                let path = Path::new(path).strip_prefix(root).unwrap_or(Path::new(path));
                file = Some(File { path: path.display().to_string(), lines: BTreeMap::new() });
            } else if let Some((number, count)) =
                line.strip_prefix("DA:").and_then(|line| line.split_once(','))
            {
                let (number, count): (usize, u64) = (number.parse()?, count.parse()?);
                if let Some(file) = &mut file {
                    *file.lines.entry(number).or_default() |= count != 0;
                }
            } else if line == "end_of_record"
                && let Some(mut file) = file.take().filter(File::is_measured)
            {
                let text = fs::read_to_string(root.join(&file.path))
                    .with_context(|| format!("{} cannot be read", file.path))?;
                let end = code_lines(&text);
                file.lines.retain(|number, _| *number <= end);
                if !file.lines.is_empty() {
                    files.push(file);
                }
            }
        }
        files.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(Self(files))
    }

    /// The files below a folder.
    pub fn below(&self, folder: &str) -> Vec<&File> {
        self.0.iter().filter(|file| Path::new(&file.path).starts_with(folder)).collect()
    }
}

/// How many lines of a file come before the module of its tests, which is the last thing in a file that has one.
fn code_lines(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let is_tests = |pair: &[&str]| {
        pair[0].starts_with("#[cfg(")
            && pair[0].contains("test")
            && pair[1].contains("mod ")
            && pair[1].ends_with('{')
    };
    lines.windows(2).position(is_tests).unwrap_or(lines.len())
}

impl File {
    fn is_measured(&self) -> bool {
        let mut parts = Path::new(&self.path).iter();
        !parts.any(|part| TESTS.iter().chain(&IMAGE).any(|name| part == *name))
    }

    /// Lines with code.
    pub fn lines(&self) -> usize {
        self.lines.len()
    }

    /// Lines that were run.
    pub fn run(&self) -> usize {
        self.lines.values().filter(|run| **run).count()
    }

    /// Lines of a hundred that were run.
    pub fn percent(&self) -> f64 {
        percent(self.lines(), self.run())
    }

    /// Runs of lines that were not run, each first and last. Lines without code in between do not part them.
    pub fn missing(&self) -> Vec<(usize, usize)> {
        let mut missing: Vec<(usize, usize)> = Vec::new();
        let mut follows = false;
        for (number, run) in &self.lines {
            match missing.last_mut() {
                Some((_, last)) if !run && follows => *last = *number,
                _ if !run => missing.push((*number, *number)),
                _ => {}
            }
            follows = !run;
        }
        missing
    }
}

/// Parts of a hundred; all of nothing.
pub fn percent(of: usize, part: usize) -> f64 {
    if of == 0 { 100.0 } else { part as f64 * 100.0 / of as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_of_tests_is_no_code() {
        assert_eq!(code_lines("fn a() {}\n\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n"), 2);
        assert_eq!(code_lines("#[cfg(any(test, feature = \"x\"))]\npub(crate) mod tests {\n}\n"), 0);
        assert_eq!(code_lines("#[cfg(test)]\nmod tests;\n\nfn a() {}\n"), 4);
    }

    #[test]
    fn lines_are_counted_by_file() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let lcov = format!(
            "SF:{0}/src/main.rs\nDA:1,1\nend_of_record\nSF:{0}/src/progress.rs\nDA:1,5\nDA:2,0\nDA:4,0\nDA:7,1\nDA:7,0\nend_of_record\n",
            root.display()
        );
        let lines = Lines::of(root, &lcov).unwrap();
        let [file] = &lines.below("src")[..] else { panic!("{lines:?}") };
        assert_eq!((file.path.as_str(), file.lines(), file.run()), ("src/progress.rs", 4, 2));
        assert_eq!(file.missing(), [(2, 4)]);
        assert!((file.percent() - 50.0).abs() < 0.01);
    }
}
