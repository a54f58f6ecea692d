//! An archive in cpio's "newc" format, as Linux takes its first file system
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

/// Bytes of a header: the magic, and thirteen numbers of eight hexadecimal digits.
const HEADER_BYTES: usize = 6 + 13 * 8;
const MAGIC: &str = "070701";
/// Headers and contents begin at multiples of this.
const ALIGN_BYTES: usize = 4;
/// The entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// File types of `st_mode`.
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive that grows. Everything in it belongs to root; a directory comes before what is in it.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// Adds a file that can be run.
    pub fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, REGULAR | 0o755, (0, 0), content);
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, REGULAR | 0o644, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.entry(path, LINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device with its major and minor number.
    pub fn character_device(&mut self, path: &str, number: (u32, u32)) {
        self.entry(path, CHARACTER_DEVICE | 0o600, number, &[]);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let links = 1;
        let (inode, size, name_size) = (self.entries, content.len() as u32, path.len() as u32 + 1);
        let numbers = [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0]
            .map(|n| format!("{n:08x}"));
        let start = self.bytes.len();
        self.bytes.extend_from_slice(MAGIC.as_bytes());
        self.bytes.extend_from_slice(numbers.concat().as_bytes());
        debug_assert_eq!(self.bytes.len() - start, HEADER_BYTES);
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN_BYTES), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Path, mode, device numbers and content.
    type Entry<S, C> = (S, u32, (u32, u32), C);

    /// The entries, read by the rules of the format.
    fn read(mut rest: &[u8]) -> Vec<Entry<String, Vec<u8>>> {
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let header = std::str::from_utf8(&rest[..HEADER_BYTES]).expect("a header is text");
            assert_eq!(&header[..6], MAGIC);
            let number = |index: usize| {
                u32::from_str_radix(&header[6 + index * 8..14 + index * 8], 16).expect("eight digits")
            };
            let name_end = HEADER_BYTES + number(11) as usize;
            let name = &rest[HEADER_BYTES..name_end];
            assert_eq!(name.last(), Some(&0));
            let content = name_end.next_multiple_of(4);
            let end = content + number(6) as usize;
            let name = String::from_utf8_lossy(&name[..name.len() - 1]).into_owned();
            entries.push((name, number(1), (number(9), number(10)), rest[content..end].to_vec()));
            rest = &rest[end.next_multiple_of(4)..];
        }
        entries
    }

    #[test]
    fn what_was_added_is_read_back_in_order() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.program("bin/tool", b"12345");
        archive.link("bin/sh", "tool");
        archive.character_device("console", (5, 1));
        archive.file("a", b"");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % ALIGN_BYTES, 0);
        let entries = read(&bytes);
        let expected: [Entry<&str, &[u8]>; 6] = [
            ("bin", 0o040_755, (0, 0), b""),
            ("bin/tool", 0o100_755, (0, 0), b"12345"),
            ("bin/sh", 0o120_777, (0, 0), b"tool"),
            ("console", 0o020_600, (5, 1), b""),
            ("a", 0o100_644, (0, 0), b""),
            (TRAILER, 0, (0, 0), b""),
        ];
        assert_eq!(entries.len(), expected.len());
        for ((name, mode, device, content), wanted) in entries.iter().zip(expected) {
            assert_eq!((name.as_str(), *mode, *device, content.as_slice()), wanted);
        }
    }

    #[test]
    fn no_two_entries_are_one_file() {
        let mut archive = Archive::default();
        for name in ["a", "b", "c"] {
            archive.file(name, b"x");
        }
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        let mut inodes: Vec<&str> = text.match_indices(MAGIC).map(|(at, _)| &text[at + 6..at + 14]).collect();
        inodes.dedup();
        assert_eq!(inodes.len(), 4);
    }
}
