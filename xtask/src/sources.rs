//! The sources of the project, parsed: which function a line is in.

use std::collections::HashMap;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context, Result};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

use crate::workspace::Workspace;

/// Files that were parsed: the lines of their functions.
#[derive(Debug, Default)]
pub struct Sources {
    files: HashMap<String, Vec<Function>>,
}

/// A function of a file.
#[derive(Debug)]
struct Function {
    /// Its name, with that of its type.
    name: String,
    lines: RangeInclusive<usize>,
}

impl Sources {
    /// What a place is called: the file and the innermost function there, and file and line. `function` stands for a place outside of the
    /// project, or none.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is no Rust.
    pub fn name(&mut self, place: Option<(&str, usize)>, function: &str) -> Result<(String, String)> {
        let Some((file, line)) = place else { return Ok((function.to_owned(), "no location".to_owned())) };
        let path = Workspace::current().root().join(file);
        if Path::new(file).is_absolute() || !path.exists() {
            // Of the path of a package or of the compiler's, what is the same on every machine.
            let parts: Vec<&str> = file.rsplit('/').take(3).collect();
            let file = parts.into_iter().rev().collect::<Vec<_>>().join("/");
            return Ok((function.to_owned(), format!("{file}:{line}")));
        }
        if !self.files.contains_key(file) {
            self.files.insert(file.to_owned(), functions_of(&path)?);
        }
        let functions = self.files.get(file).into_iter().flatten();
        let found = functions
            .filter(|function| function.lines.contains(&line))
            .min_by_key(|function| function.lines.end() - function.lines.start());
        let name = found.map_or("outside of functions", |function| &function.name);
        Ok((format!("{file}: {name}"), format!("{file}:{line}")))
    }
}

/// Parses a file.
///
/// # Errors
///
/// It cannot be read, or is no Rust.
pub fn parse(path: &Path) -> Result<syn::File> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    syn::parse_file(&text).with_context(|| format!("cannot parse {}", path.display()))
}

fn functions_of(path: &Path) -> Result<Vec<Function>> {
    let mut finder = Finder::default();
    finder.visit_file(&parse(path)?);
    Ok(finder.functions)
}

#[derive(Default)]
struct Finder {
    /// The type that an `impl` is of.
    owner: Option<String>,
    functions: Vec<Function>,
}

impl Finder {
    fn add(&mut self, name: &syn::Ident, of: proc_macro2::Span) {
        let name = match &self.owner {
            Some(owner) => format!("{owner}::{name}"),
            None => name.to_string(),
        };
        self.functions.push(Function { name, lines: of.start().line..=of.end().line });
    }
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let owner = match &*item.self_ty {
            syn::Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
            _ => None,
        };
        let outer = std::mem::replace(&mut self.owner, owner);
        visit::visit_item_impl(self, item);
        self.owner = outer;
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.add(&item.sig.ident, item.span());
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.add(&item.sig.ident, item.span());
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.add(&item.sig.ident, item.span());
        visit::visit_trait_item_fn(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_innermost_function() {
        let mut sources = Sources::default();
        let file = "xtask/src/sources.rs";
        let text = fs::read_to_string(Workspace::current().root().join(file)).unwrap();
        let line = |what: &str| text.lines().position(|line| line.contains(what)).unwrap() + 1;
        let inner = line("let line = |what");
        let (name, place) = sources.name(Some((file, inner)), "elsewhere").unwrap();
        assert_eq!(name, "xtask/src/sources.rs: a_line_has_its_innermost_function");
        assert_eq!(place, format!("{file}:{inner}"));
        let method = line("let outer = std::mem::replace");
        assert_eq!(
            sources.name(Some((file, method)), "").unwrap().0,
            "xtask/src/sources.rs: Finder::visit_item_impl"
        );
    }

    #[test]
    fn what_is_not_of_the_project_has_the_name_of_its_caller() {
        let place = Some(("/somewhere/package-1.0.0/src/lib.rs", 7));
        let name = Sources::default().name(place, "caller").unwrap();
        assert_eq!(name, ("caller".into(), "package-1.0.0/src/lib.rs:7".into()));
    }
}
