//! `cargo xtask trace`: what QEMU's SMMUs were told and what they did, as text.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use super::run::{Host, Machine, Prepared};
use crate::emulator;
use crate::workspace::Workspace;

/// Options of `trace`.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    machine: Machine,
    /// Also page-table walks, cache hits and register accesses: a hundred times as many lines
    #[arg(long)]
    all: bool,
    /// Only lines with this text, for example "TLBI" or "fault"
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Seconds after which a guest without an outcome is ended
    #[arg(long, default_value_t = 600, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

/// Events of QEMU's SMMU model that say what happened.
const EVENTS: &[&str] = &[
    "smmuv3_cmdq_opcode",
    "smmuv3_cmdq_cfgi_ste",
    "smmuv3_cmdq_cfgi_ste_range",
    "smmuv3_cmdq_cfgi_cd",
    "smmuv3_cmdq_tlbi_*",
    "smmuv3_cmdq_consume_error",
    "smmuv3_range_inval",
    "smmuv3_unhandled_cmd",
    "smmuv3_write_gerror*",
    "smmuv3_propagate_event",
    "smmuv3_translate_*",
    "smmuv3_trigger_irq",
];

/// Runs once with tracing and prints the decoded events.
///
/// # Errors
///
/// As `run`, or the trace cannot be read.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let workspace = Workspace::current();
    let timeout = Duration::from_secs(arguments.timeout);
    let mut run = arguments.machine.run("trace", &workspace, timeout, false)?;
    if arguments.machine.host == Host::Shim && run.bootargs.is_empty() {
        // Ten thousand rounds of the concurrent check would fill gigabytes.
        run.bootargs = "rounds=10".into();
    }
    let Prepared { qemu, software, .. } = arguments.machine.prepare(&workspace)?;
    let (events, raw) = (run.logs.join("trace.events"), run.logs.join("trace.raw"));
    let names = if arguments.all { "smmu*\n".to_owned() } else { EVENTS.join("\n") + "\n" };
    fs::write(&events, names).with_context(|| format!("cannot write {}", events.display()))?;
    run.show = false;
    run.extra.extend(vec![
        "-trace".into(),
        format!("events={}", events.display()),
        "-D".into(),
        raw.display().to_string(),
    ]);
    let record = emulator::run(&run, &qemu, &software)?;
    show(&raw, arguments.only.as_deref())?;
    eprintln!("{} ({}, console in {})", record.sentence(timeout), run.shape, record.log.display());
    Ok(record.passed())
}

/// Prints the trace, a run of equal lines as one, and how often each event happened.
fn show(raw: &Path, only: Option<&str>) -> Result<()> {
    let file = File::open(raw).with_context(|| format!("QEMU left no trace in {}", raw.display()))?;
    let mut out = std::io::stdout().lock();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut last: Option<(String, u64)> = None;
    let flush = |out: &mut std::io::StdoutLock<'_>, last: Option<(String, u64)>| match last {
        // A reader that has seen enough closes the pipe; that is no error.
        Some((line, 1)) => writeln!(out, "{line}"),
        Some((line, times)) => writeln!(out, "{line}    ({times} times)"),
        None => Ok(()),
    };
    for line in BufReader::new(file).lines() {
        let Some(event) = Event::parse(&line?).map(Event::into_text) else { continue };
        *counts.entry(event.kind).or_default() += 1;
        if only.is_some_and(|text| !event.text.contains(text)) {
            continue;
        }
        match &mut last {
            Some((previous, times)) if *previous == event.text => *times += 1,
            _ => {
                if flush(&mut out, last.replace((event.text, 1))).is_err() {
                    return Ok(());
                }
            }
        }
    }
    let _ = flush(&mut out, last.take());
    let _ = writeln!(out);
    for (kind, count) in counts {
        let _ = writeln!(out, "{count:>10} {kind}");
    }
    Ok(())
}

/// A line of QEMU's trace.
struct Event<'a> {
    name: &'a str,
    rest: &'a str,
}

/// An event as a reader wants it.
struct Text {
    /// What it is counted as.
    kind: String,
    /// The line.
    text: String,
}

impl<'a> Event<'a> {
    /// Reads `NAME REST`, with or without `PID@SECONDS:` before it.
    fn parse(line: &'a str) -> Option<Self> {
        let line = match line.split_once(':') {
            Some((stamp, rest)) if stamp.contains('@') && !stamp.contains(' ') => rest,
            _ => line,
        };
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        name.starts_with("smmu").then_some(Self { name, rest: rest.trim() })
    }

    /// The value after `name=`.
    fn field(&self, name: &str) -> Option<&'a str> {
        let mut places = self.rest.match_indices(name).map(|(at, _)| at);
        let at = places.find(|&at| at == 0 || !self.rest.as_bytes()[at - 1].is_ascii_alphanumeric())?;
        let value = self.rest[at + name.len()..].strip_prefix(['=', ':'])?.trim_start();
        Some(value.split([' ', ',']).next().unwrap_or(value))
    }

    fn into_text(self) -> Text {
        let field = |name| self.field(name).unwrap_or("?");
        let (kind, text) = match self.name {
            "smmuv3_cmdq_opcode" => {
                let command = self.rest.trim_start_matches("<--- ").trim_start_matches("SMMU_CMD_");
                (format!("command CMD_{command}"), format!("command CMD_{command}"))
            }
            "smmuv3_range_inval" => {
                let stage = field("stage");
                let text = format!(
                    "    forget {} pages from {} (stage {stage}, VMID {}, TG {}, TTL {}, leaf {})",
                    field("num_pages"),
                    field("addr"),
                    field("vmid"),
                    field("tg"),
                    field("ttl"),
                    field("leaf")
                );
                ("range forgotten".into(), text)
            }
            "smmuv3_cmdq_cfgi_ste" => {
                ("STE forgotten".into(), format!("    forget STE of stream {}", field("streamid")))
            }
            "smmuv3_cmdq_cfgi_ste_range" => (
                "STEs forgotten".into(),
                format!("    forget STEs of streams {} to {}", field("start"), field("end")),
            ),
            "smmuv3_cmdq_tlbi_s12_vmid" | "smmuv3_cmdq_tlbi_nh" => {
                ("VMID forgotten".into(), format!("    forget all of VMID {}", field("vmid")))
            }
            "smmuv3_translate_success" => {
                let text = format!(
                    "translation: stream {} {} -> {} (stage {}, permission {})",
                    field("sid"),
                    field("iova"),
                    field("translated"),
                    field("stage"),
                    field("perm")
                );
                ("translation".into(), text)
            }
            "smmuv3_translate_abort" => {
                ("abort".into(), format!("abort: stream {} {}", field("sid"), field("iova")))
            }
            "smmuv3_translate_bypass" | "smmuv3_translate_disable" => {
                let what = if self.name.ends_with("bypass") { "a bypass STE" } else { "an SMMU that is off" };
                (
                    "NOT TRANSLATED".into(),
                    format!("NOT TRANSLATED: {what}: stream {} {}", field("sid"), field("iova")),
                )
            }
            "smmuv3_propagate_event" => {
                let event = self.rest.split_whitespace().next().unwrap_or("?");
                let event = event.trim_start_matches("SMMU_EVT_");
                (format!("fault {event}"), format!("fault {event}: {}", self.rest))
            }
            "smmuv3_write_gerror" => ("GERROR raised".into(), format!("GERROR raised: {}", self.rest)),
            "smmuv3_write_gerrorn" => {
                ("GERROR acknowledged".into(), format!("GERROR acknowledged: {}", self.rest))
            }
            "smmuv3_cmdq_consume_error" => ("COMMAND ERROR".into(), format!("COMMAND ERROR: {}", self.rest)),
            other => {
                let name = other.trim_start_matches("smmuv3_").trim_start_matches("smmu_").replace('_', " ");
                (name.clone(), format!("{name}: {}", self.rest))
            }
        };
        Text { kind, text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: &str) -> String {
        Event::parse(line).expect(line).into_text().text
    }

    #[test]
    fn events_become_sentences() {
        assert_eq!(text("smmuv3_cmdq_opcode <--- SMMU_CMD_TLBI_S2_IPA"), "command CMD_TLBI_S2_IPA");
        assert_eq!(
            text("123@1700000000.5:smmuv3_cmdq_cfgi_ste streamid= 0x8"),
            "    forget STE of stream 0x8"
        );
        assert_eq!(
            text(
                "smmuv3_range_inval vmid=3 asid=-1 addr=0x48000000 tg=12 num_pages=0x1 ttl=3 leaf=1 stage=2"
            ),
            "    forget 0x1 pages from 0x48000000 (stage 2, VMID 3, TG 12, TTL 3, leaf 1)"
        );
        assert!(Event::parse("virtio_notify something").is_none());
        assert!(
            text("smmuv3_translate_success smmuv3-iommu-memory-region-8-0 sid=0x8").contains("stream 0x8 ?")
        );
    }
}
