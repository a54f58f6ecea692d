//! Which Debian archive to take packages from.

use std::fs;
use std::path::PathBuf;

/// The archive to take when the machine's own sources name none.
pub const DEFAULT: &str = "http://deb.debian.org/debian";

/// The Debian archive that the machine's own apt uses, else the default one.
pub fn of_this_machine() -> String {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    texts.flat_map(|text| mirrors(&text)).next().unwrap_or_else(|| DEFAULT.to_owned())
}

/// Addresses of Debian archives in a sources file of either style.
fn mirrors(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"));
    lines
        .flat_map(str::split_whitespace)
        .filter(|word| word.starts_with("http://") || word.starts_with("https://"))
        .map(|address| address.trim_end_matches('/'))
        .filter(|address| address.ends_with("/debian"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_archive_and_nothing_else() {
        let deb822 = "Types: deb\n# http://snapshot.debian.org/archive/debian/2025\nURIs: http://mirror.example/debian/\n\
                      Suites: bookworm\n\nTypes: deb\nURIs: http://mirror.example/debian-security\n";
        assert_eq!(mirrors(deb822), ["http://mirror.example/debian"]);
        let list = "# deb http://old.example/debian trixie main\ndeb [arch=amd64] https://a.example/debian trixie main\n\
                    deb https://packages.example/apt stable main\ndeb http://archive.ubuntu.com/ubuntu noble main\n";
        assert_eq!(mirrors(list), ["https://a.example/debian"]);
    }
}
