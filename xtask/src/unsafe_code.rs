//! Where there is `unsafe` code: a table in docs/architecture.md, kept true by a test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};

use crate::workspace::Workspace;

/// Directories of programs and libraries that the project is made of.
const DIRECTORIES: [&str; 5] = ["hyp", "host-shim", "linux", "tests", "xtask"];

/// How often a file has the word, by what follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    /// `unsafe { .. }`.
    blocks: usize,
    /// `unsafe fn`, `unsafe impl`, `unsafe trait`.
    items: usize,
    /// `unsafe extern`, and attributes such as `unsafe(no_mangle)`: what the linker must be trusted with.
    links: usize,
}

impl Count {
    /// Counts the tokens of a file, those of macros among them. Comments and strings are none.
    fn of(tokens: TokenStream) -> Self {
        let mut count = Self::default();
        count.add(tokens);
        count
    }

    fn add(&mut self, tokens: TokenStream) {
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Ident(word) if word == "unsafe" => match tokens.peek() {
                    Some(TokenTree::Group(group)) if group.delimiter() == proc_macro2::Delimiter::Brace => {
                        self.blocks += 1;
                    }
                    Some(TokenTree::Ident(next)) if next != "extern" => self.items += 1,
                    _ => self.links += 1,
                },
                TokenTree::Group(group) => self.add(group.stream()),
                _ => {}
            }
        }
    }
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn table() -> String {
    let root = Workspace::current().root().to_owned();
    let mut files = Vec::new();
    DIRECTORIES.iter().for_each(|directory| rust_files(&root.join(directory), &mut files));
    assert!(files.len() > 200, "{} files", files.len());
    let mut counts = BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let name = file.strip_prefix(&root).unwrap().display().to_string();
        counts.insert(name, Count::of(tokens));
    }
    counts.retain(|_, count| *count != Count::default());
    let mut sum = Count::default();
    let mut table =
        String::from("| file | blocks | functions, `impl`s | for the linker |\n| --- | --- | --- | --- |\n");
    let number = |n: usize| if n == 0 { String::new() } else { n.to_string() };
    for (name, Count { blocks, items, links }) in counts {
        table += &format!("| `{name}` | {} | {} | {} |\n", number(blocks), number(items), number(links));
        (sum.blocks, sum.items, sum.links) = (sum.blocks + blocks, sum.items + items, sum.links + links);
    }
    table + &format!("| all | {} | {} | {} |\n", sum.blocks, sum.items, sum.links)
}

#[test]
fn the_table_of_unsafe_code_is_true() {
    let path = Workspace::current().root().join("docs/architecture.md");
    let text = fs::read_to_string(path).unwrap();
    let table = table();
    assert!(text.contains(&table), "docs/architecture.md should have this table:\n\n{table}");
}

#[test]
fn the_word_is_counted_where_it_is_code() {
    let text = r#"
        // unsafe { }
        const TEXT: &str = "unsafe { }";
        macro_rules! read { () => { unsafe { 1 } } }
        unsafe extern "C" { static A: u8; }
        unsafe impl Sync for X {}
        #[unsafe(no_mangle)]
        unsafe fn f() { unsafe { g() } }
    "#;
    assert_eq!(Count::of(text.parse().unwrap()), Count { blocks: 2, items: 2, links: 2 });
}
