//! Which panics the host can reach, by the machine code of the release image.
//!
//! From the functions that exceptions of EL1 enter, every call is followed: direct ones, and for an indirect one every function whose address
//! is in data or is taken by code that is reached. What calls a panic function of `core` is a *site*. Each site must be in `panics.toml`, with the
//! reason why it cannot happen; and each entry there must have as many sites as it says.

mod allowed;
mod code;
mod locations;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;

use anyhow::{Context, Result};

use crate::image::Image;
use crate::sources::Sources;
use allowed::Allowed;
use code::Code;
use locations::Locations;

/// What the host makes EL2 run: the two ways that the exception vectors take from EL1, and the start of a CPU that the host turns on.
const ROOTS: [&str; 3] = [
    "hyp::image::traps::hypercall",
    "hyp::image::traps::lower_synchronous",
    "hyp::image::boot::boot_secondary",
];

/// A call of a panic function that the host may get to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Site {
    /// The function of the source, inlined or not.
    function: String,
    /// The panic, as `core` calls it.
    panic: String,
    /// File and line.
    place: String,
}

/// What an image was found to have.
pub struct Report {
    sites: BTreeSet<Site>,
    /// Functions that are reached, and all.
    functions: (usize, usize),
    allowed: Allowed,
}

impl Report {
    /// Everything that is wrong: places that nobody has a reason for, and reasons without a place.
    pub fn complaints(&self) -> Vec<String> {
        let mut found: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for Site { function, panic, place } in &self.sites {
            found.entry((function, panic)).or_default().push(place);
        }
        let more = found.iter().filter_map(|((function, panic), places)| {
            let (there, known) = (places.len(), self.allowed.places(function, panic));
            let places = places.join(", ");
            match known {
                _ if there <= known => None,
                0 => Some(format!(
                    "new: {panic} in {function} ({places}) can be reached, and panics.toml does not say why it cannot happen"
                )),
                _ => Some(format!(
                    "more: {panic} in {function} can be reached at {there} places ({places}); panics.toml says of {known} why it cannot happen"
                )),
            }
        });
        let less = self.allowed.all().filter_map(|(function, panic, known)| {
            match found.get(&(function, panic)).map_or(0, Vec::len) {
                0 => Some(format!("stale: panics.toml has {panic} in {function}, which is not reached")),
                there if there < known => Some(format!(
                    "stale: panics.toml has {known} places of {panic} in {function}, of which {there} are reached"
                )),
                _ => None,
            }
        });
        more.chain(less).collect()
    }

    /// One line for each site, and a last one with how many.
    pub fn print(&self) {
        for Site { function, panic, place } in &self.sites {
            println!("{panic:<14} {function} ({place})");
        }
        let (reached, all) = self.functions;
        println!(
            "{} places to panic in {reached} of {all} functions that the host can reach",
            self.sites.len()
        );
    }
}

/// Looks at the hypervisor's image.
///
/// # Errors
///
/// The image cannot be read or has no such functions, or `panics.toml` cannot be read.
pub fn examine(image: &Image) -> Result<Report> {
    let bytes = fs::read(&image.elf).with_context(|| format!("cannot read {}", image.elf.display()))?;
    let code = Code::read(&bytes)?;
    let locations = Locations::read(&bytes)?;
    let mut roots = Vec::new();
    for root in ROOTS {
        roots.push(code.named(root).with_context(|| format!("the image has no function {root}"))?);
    }
    let reached = reach(&code, &roots);
    let (mut sites, mut sources) = (BTreeSet::new(), Sources::default());
    for &function in &reached {
        for call in code.calls(function) {
            if is_panic(code.name(call.callee)) {
                let panic = kind(code.name(call.callee)).to_owned();
                let location = call.arguments.iter().find_map(|argument| locations.at(*argument));
                let (function, place) = sources.name(location, code.name(function))?;
                sites.insert(Site { function, panic, place });
            }
        }
    }
    Ok(Report { sites, functions: (reached.len(), code.len()), allowed: Allowed::read()? })
}

/// Every function that can be reached, without those that only panic.
fn reach(code: &Code, roots: &[usize]) -> BTreeSet<usize> {
    let mut reached = BTreeSet::new();
    let mut waiting: VecDeque<usize> = roots.iter().copied().collect();
    let (mut is_indirect, mut taken) = (false, code.in_data().clone());
    while let Some(function) = waiting.pop_front() {
        if is_panic(code.name(function)) || !reached.insert(function) {
            continue;
        }
        waiting.extend(code.calls(function).iter().map(|call| call.callee));
        taken.extend(code.taken(function));
        is_indirect |= code.is_indirect(function);
        if waiting.is_empty() && is_indirect {
            waiting.extend(taken.difference(&reached).copied().filter(|at| !is_panic(code.name(*at))));
        }
    }
    reached
}

/// Whether a function is there to panic: those of `core`. One that is missing here shows as a site in `core`.
fn is_panic(name: &str) -> bool {
    const MODULES: [&str; 2] = ["core::panicking::", "core::slice::index::slice_index_fail"];
    const FAILED: [&str; 4] = [
        "core::option::expect_failed",
        "core::option::unwrap_failed",
        "core::result::unwrap_failed",
        "core::str::slice_error_fail",
    ];
    MODULES.iter().any(|module| name.starts_with(module)) || FAILED.contains(&name)
}

/// The short name of a panic.
fn kind(name: &str) -> &str {
    let last = name.rsplit("::").next().unwrap_or(name);
    last.strip_prefix("panic_const_").unwrap_or(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(function: &str, panic: &str) -> Site {
        Site { function: function.into(), panic: panic.into(), place: "file.rs:1".into() }
    }

    fn report(sites: &[(&str, &str)], list: &str) -> Report {
        Report {
            sites: sites.iter().map(|(function, panic)| site(function, panic)).collect(),
            functions: (1, 1),
            allowed: Allowed::parse(list).unwrap(),
        }
    }

    const LIST: &str =
        "[[allowed]]\nfunction = \"a.rs: f\"\npanics = { add_overflow = 1 }\nwhy = \"it is below ten\"\n";

    #[test]
    fn a_site_and_its_reason_go_together() {
        assert!(report(&[("a.rs: f", "add_overflow")], LIST).complaints().is_empty());
    }

    #[test]
    fn a_new_site_and_a_stale_reason_are_complaints() {
        let complaints = report(&[("a.rs: f", "sub_overflow")], LIST).complaints();
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(complaints[0].starts_with("new: sub_overflow in a.rs: f"), "{complaints:?}");
        assert!(
            complaints[1].starts_with("stale: panics.toml has add_overflow in a.rs: f"),
            "{complaints:?}"
        );
    }

    #[test]
    fn a_reason_is_for_as_many_places_as_it_says() {
        let mut both = report(&[("a.rs: f", "add_overflow")], LIST);
        both.sites.insert(Site { place: "file.rs:2".into(), ..site("a.rs: f", "add_overflow") });
        let complaints = both.complaints();
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(
            complaints[0].starts_with(
                "more: add_overflow in a.rs: f can be reached at 2 places (file.rs:1, file.rs:2)"
            )
        );
        let complaints = report(&[("a.rs: f", "add_overflow")], &LIST.replace("= 1", "= 2")).complaints();
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(
            complaints[0]
                .starts_with("stale: panics.toml has 2 places of add_overflow in a.rs: f, of which 1")
        );
    }

    #[test]
    fn panic_functions_are_known_by_their_modules() {
        for name in [
            "core::panicking::panic_fmt",
            "core::panicking::panic_const::panic_const_add_overflow",
            "core::slice::index::slice_index_fail",
            "core::option::unwrap_failed",
        ] {
            assert!(is_panic(name), "{name}");
        }
        assert!(!is_panic("hyp::image::panic::report_exception"));
        assert_eq!(kind("core::panicking::panic_const::panic_const_add_overflow"), "add_overflow");
        assert_eq!(kind("core::option::unwrap_failed"), "unwrap_failed");
    }
}
