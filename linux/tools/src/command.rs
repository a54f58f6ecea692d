//! What can be typed after `hyp-iommu`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use abi::{attach, domain_options};

use crate::{fuzz, number};

/// A command with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// What can be typed.
    Help,
    /// Versions and limits.
    Version,
    /// Every SMMU.
    Smmus,
    /// Every stream that is attached.
    Streams,
    /// The host's domain and those of guests' memory.
    Domains,
    /// Every counter.
    Statistics,
    /// Events, which are then gone.
    Events,
    /// How the hypervisor's pool of pages stands.
    Pool,
    /// The pages of the module.
    Memory,
    /// One stream.
    Stream { smmu: u64, stream: u64 },
    /// One domain, and its tags.
    Domain { domain: u64 },
    /// Who has a page.
    Owner { start: u64 },
    /// Lets a stream into a domain.
    Attach { smmu: u64, stream: u64, domain: u64, flags: u64 },
    /// Takes a stream out of its domain.
    Detach { smmu: u64, stream: u64 },
    /// Pages for calls about memory.
    Allocate { size: u64 },
    /// Pages go back to Linux.
    Free { start: u64 },
    /// Reads a word.
    Read { address: u64 },
    /// Writes a word.
    Write { address: u64, value: u64 },
    /// Pages go to a guest.
    Donate { start: u64, size: u64, guest: u64 },
    /// Pages come back from a guest.
    Reclaim { start: u64, size: u64, guest: u64 },
    /// Pages are shared: with the hypervisor (0) or a guest.
    Share { start: u64, size: u64, with: u64 },
    /// They are shared no more.
    Unshare { start: u64, size: u64, with: u64 },
    /// Pages go to the hypervisor's pool.
    TopUp { start: u64, size: u64 },
    /// Pages come back from it.
    GiveBack { size: u64 },
    /// A new guest.
    GuestCreate,
    /// A guest that has nothing ends.
    GuestDestroy { guest: u64 },
    /// A guest is taken apart.
    GuestTeardown { guest: u64 },
    /// A new domain of a guest.
    DomainCreate { guest: u64, options: u64 },
    /// A domain ends.
    DomainDestroy { domain: u64 },
    /// Pages of the guest become reachable in its domain.
    DomainMap { domain: u64, ipa: u64, start: u64, size: u64 },
    /// They are reachable no more.
    DomainUnmap { domain: u64, ipa: u64, size: u64 },
    /// Where an address of a domain leads.
    DomainQuery { domain: u64, ipa: u64 },
}

/// What a command looks like.
struct Form {
    /// The words that it begins with.
    words: &'static str,
    /// The numbers that follow.
    arguments: &'static [&'static str],
    /// Words that may follow these, and the bit that each stands for.
    options: &'static [(&'static str, u64)],
    /// What it does.
    help: &'static str,
    /// Makes it of its numbers, all of them there, and the bits of its options.
    make: fn(&[u64], u64) -> Command,
}

/// A form without options; the numbers are the fields in this order.
macro_rules! form {
    ($words:literal, $help:literal, $command:ident) => {
        Form { words: $words, arguments: &[], options: &[], help: $help, make: |_, _| Command::$command }
    };
    ($words:literal, $help:literal, $command:ident { $($field:ident = $name:literal),+ }) => {
        form!($words, $help, $command { $($field = $name),+ } options _unused, [])
    };
    ($words:literal, $help:literal, $command:ident { $($field:ident = $name:literal),+ } options $flags:ident, [$($option:expr),*]) => {
        Form {
            words: $words,
            arguments: &[$($name),+],
            options: &[$($option),*],
            help: $help,
            make: |numbers, $flags| {
                let mut numbers = numbers.iter().copied();
                $(let $field = numbers.next().unwrap_or_default();)+
                form!(@make $command { $($field),+ } $flags)
            },
        }
    };
    (@make $command:ident { $($field:ident),+ } _unused) => { Command::$command { $($field),+ } };
    (@make $command:ident { $($field:ident),+ } $flags:ident) => { Command::$command { $($field,)+ $flags } };
}

const FORMS: &[Form] = &[
    form!("help", "this text", Help),
    form!("version", "versions, features and limits", Version),
    form!("smmus", "every SMMU, with its tags", Smmus),
    form!("streams", "every stream that is attached to a domain", Streams),
    form!("domains", "the host's domain and those of guests' memory", Domains),
    form!("statistics", "every counter", Statistics),
    form!("events", "the events that no driver and no guest has, oldest first; they are then gone", Events),
    form!("pool", "the hypervisor's pool of pages", Pool),
    form!("memory", "the pages that were allocated here, and who has them", Memory),
    form!("stream", "which domain a stream is attached to", Stream { smmu = "SMMU", stream = "STREAM" }),
    form!("domain", "what a domain is, and its tags", Domain { domain = "DOMAIN" }),
    form!("owner", "who has a page", Owner { start = "START" }),
    form!("attach", "lets a stream into a domain; with `replace` it changes over from another", Attach { smmu = "SMMU", stream = "STREAM", domain = "DOMAIN" } options flags, [("replace", attach::REPLACE), ("ats", attach::ATS)]),
    form!("detach", "takes a stream out of its domain", Detach { smmu = "SMMU", stream = "STREAM" }),
    form!("allocate", "takes pages from Linux for what follows", Allocate { size = "SIZE" }),
    form!("free", "gives pages back to Linux that nobody has", Free { start = "START" }),
    form!("read", "reads a word of 64 bits of such pages", Read { address = "ADDRESS" }),
    form!("write", "writes one", Write { address = "ADDRESS", value = "VALUE" }),
    form!("donate", "gives pages to a guest", Donate { start = "START", size = "SIZE", guest = "GUEST" }),
    form!("reclaim", "takes them back", Reclaim { start = "START", size = "SIZE", guest = "GUEST" }),
    form!("share", "shares pages with a guest, or with the hypervisor (0)", Share { start = "START", size = "SIZE", with = "WITH" }),
    form!("unshare", "ends that", Unshare { start = "START", size = "SIZE", with = "WITH" }),
    form!("top-up", "gives pages to the hypervisor's pool", TopUp { start = "START", size = "SIZE" }),
    form!("give-back", "takes pages back from it; it says which", GiveBack { size = "SIZE" }),
    form!("guest create", "makes a guest", GuestCreate),
    form!("guest destroy", "ends a guest that has nothing", GuestDestroy { guest = "GUEST" }),
    form!("guest teardown", "takes a guest apart, whatever it has", GuestTeardown { guest = "GUEST" }),
    form!("domain create", "makes a domain of a guest", DomainCreate { guest = "GUEST" } options options, [("blocks", domain_options::BLOCKS)]),
    form!("domain destroy", "ends it", DomainDestroy { domain = "DOMAIN" }),
    form!("domain map", "maps pages that its guest has", DomainMap { domain = "DOMAIN", ipa = "IPA", start = "START", size = "SIZE" }),
    form!("domain unmap", "takes a mapping away", DomainUnmap { domain = "DOMAIN", ipa = "IPA", size = "SIZE" }),
    form!("domain query", "where an address leads", DomainQuery { domain = "DOMAIN", ipa = "IPA" }),
];

impl Form {
    /// The command as it is typed.
    fn usage(&self) -> String {
        let arguments = self.arguments.iter().map(|name| format!(" {name}"));
        let options = self.options.iter().map(|(name, _)| format!(" [{name}]"));
        format!("hyp-iommu {}{}", self.words, arguments.chain(options).collect::<String>())
    }

    /// How many of the words typed are the form's own, if all of the form's are there.
    fn matched(&self, typed: &[&str]) -> Option<usize> {
        let mut words = self.words.split(' ');
        let count = self.words.split(' ').count();
        (typed.len() >= count && words.by_ref().zip(typed).all(|(word, typed)| word == *typed))
            .then_some(count)
    }

    fn parse(&self, rest: &[&str]) -> Result<Command, String> {
        let wrong = |what: String| format!("{what}\nIt is: {}", self.usage());
        let (numbers, options) = rest.split_at_checked(self.arguments.len()).ok_or_else(|| {
            wrong(format!("'{}' takes {} arguments, not {}", self.words, self.arguments.len(), rest.len()))
        })?;
        let numbers: Vec<u64> = numbers
            .iter()
            .zip(self.arguments)
            .map(|(text, name)| number::parse(text).map_err(|error| wrong(format!("{name}: {error}"))))
            .collect::<Result<_, _>>()?;
        let mut bits = 0;
        for typed in options {
            let option = self.options.iter().find(|(name, _)| name == typed);
            bits |= option.ok_or_else(|| wrong(format!("'{typed}' is one word too many")))?.1;
        }
        Ok((self.make)(&numbers, bits))
    }
}

/// Reads a command from the words after the program's name. No words are a call for help.
///
/// # Errors
///
/// It is no command, or has wrong arguments; the text says what is right.
pub fn parse(typed: &[&str]) -> Result<Command, String> {
    let Some(first) = typed.first() else { return Ok(Command::Help) };
    // The longest form wins: `domain create` before `domain`.
    let form =
        FORMS.iter().filter_map(|form| Some((form.matched(typed)?, form))).max_by_key(|(count, _)| *count);
    if let Some((count, form)) = form {
        return form.parse(&typed[count..]);
    }
    let near: Vec<String> =
        FORMS.iter().filter(|form| form.words.split(' ').next() == Some(first)).map(Form::usage).collect();
    Err(if near.is_empty() {
        format!("'{first}' is no command: `hyp-iommu help` lists them")
    } else {
        format!("'{}' is no command. There are:\n{}", typed.join(" "), near.join("\n"))
    })
}

/// What can be typed, a line each.
pub fn help() -> String {
    let usages: Vec<String> = FORMS.iter().map(Form::usage).collect();
    let width = usages.iter().map(String::len).max().unwrap_or(0);
    let lines = usages.iter().zip(FORMS).map(|(usage, form)| format!("{usage:width$}  {}\n", form.help));
    format!(
        "{}{}\nNumbers are decimal, or hexadecimal with 0x, or have a unit: 4K, 2M. Domain 0 is the host's, 1 to 64 a guest's memory.\n",
        lines.collect::<String>(),
        fuzz::USAGE
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(text: &str) -> Result<Command, String> {
        parse(&text.split_whitespace().collect::<Vec<_>>())
    }

    #[test]
    fn every_form_is_read_as_it_is_printed() {
        let help = help();
        for form in FORMS {
            assert!(help.contains(&form.usage()), "{}", form.words);
            let numbers: Vec<String> = (1..=form.arguments.len()).map(|n| format!("{n:#x}")).collect();
            let values: Vec<u64> = (1..=form.arguments.len() as u64).collect();
            let with = |options: &str| typed(&format!("{} {} {options}", form.words, numbers.join(" ")));
            assert_eq!(with(""), Ok((form.make)(&values, 0)));
            for (name, bit) in form.options {
                assert_eq!(with(name), Ok((form.make)(&values, *bit)));
            }
            let error = with("nonsense").expect_err("one word too many");
            assert!(error.contains("'nonsense'") && error.contains(&form.usage()), "{error}");
            if let Some(last) = numbers.last() {
                let fewer = numbers[..numbers.len() - 1].join(" ");
                let error = typed(&format!("{} {fewer}", form.words)).expect_err("a number is missing");
                assert!(error.contains(&form.usage()), "{error} without {last}");
                let error = typed(&format!("{} {fewer} x", form.words)).expect_err("no number");
                assert!(error.contains("'x'") && error.contains(&form.usage()), "{error}");
            }
        }
    }

    #[test]
    fn numbers_come_in_the_order_of_the_form() {
        assert_eq!(
            typed("attach 1 0x900 3 replace ats"),
            Ok(Command::Attach { smmu: 1, stream: 0x900, domain: 3, flags: attach::REPLACE | attach::ATS })
        );
        assert_eq!(
            typed("donate 0x48000000 4K 2"),
            Ok(Command::Donate { start: 0x4800_0000, size: 4096, guest: 2 })
        );
        assert_eq!(typed("domain 0x100000041"), Ok(Command::Domain { domain: 0x1_0000_0041 }));
        assert_eq!(typed("domain create 1 blocks"), Ok(Command::DomainCreate { guest: 1, options: 1 }));
        assert_eq!(typed(""), Ok(Command::Help));
    }

    #[test]
    fn what_is_no_command_is_answered_with_those_that_are() {
        assert!(typed("smmu").expect_err("not one").contains("hyp-iommu help"));
        let error = typed("guest kill 1").expect_err("not one");
        assert!(error.contains("hyp-iommu guest teardown GUEST") && !error.contains("attach"), "{error}");
    }
}
