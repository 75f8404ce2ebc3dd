//! EDGE: probes on the functions of TLS libraries, one set for each file that has them.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{
        ProgramError, UProbe,
        uprobe::{UProbeLink, UProbeLinkId, UProbeScope},
    },
};

use super::{attach::Variant, go::lock};
use crate::process::binary::tls::Point;

/// Probes that are attached, by file.
pub struct TlsHooks {
    /// Shared with the guard, which detaches everything at the end.
    ebpf: Arc<Mutex<Ebpf>>,
    variant: Variant,
    attached: HashMap<u64, Attached>,
    next: u64,
}

/// Probes, by the programs that they run.
pub(super) type Attached = Vec<(&'static str, UProbeLinkId)>;

/// The probes of one file.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct ProbesId(u64);

impl TlsHooks {
    pub(super) fn new(ebpf: &Arc<Mutex<Ebpf>>, variant: Variant) -> Self {
        Self {
            ebpf: Arc::clone(ebpf),
            variant,
            attached: HashMap::new(),
            next: 0,
        }
    }

    /// Probes these functions of this file, in every process that runs it: all or none.
    pub fn attach(&mut self, file: &Path, points: &[Point]) -> Result<ProbesId> {
        let points: Vec<Point> = points
            .iter()
            .map(|point| Point {
                program: self.of_variant(point.program),
                ..*point
            })
            .collect();
        let links = attach_all(&mut *lock(&self.ebpf)?, file, &points)?;
        self.next += 1;
        self.attached.insert(self.next, links);
        Ok(ProbesId(self.next))
    }

    fn of_variant(&self, program: &'static str) -> &'static str {
        match (self.variant, program) {
            (Variant::Injecting, "tls_return") => "tls_return_injecting",
            _ => program,
        }
    }

    pub fn detach(&mut self, probes: &ProbesId) -> Result<()> {
        if let Some(links) = self.attached.remove(&probes.0) {
            detach(&mut *lock(&self.ebpf)?, links);
        }
        Ok(())
    }
}

impl Drop for TlsHooks {
    fn drop(&mut self) {
        let links = self.attached.drain().flat_map(|(_, links)| links).collect();
        if let Ok(mut ebpf) = lock(&self.ebpf) {
            detach_now(&mut ebpf, links);
        }
    }
}

fn program<'ebpf>(ebpf: &'ebpf mut Ebpf, name: &'static str) -> Result<&'ebpf mut UProbe> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("program {name} is not in the eBPF object"))?;
    Ok(program.try_into()?)
}

/// Probes these places of a file: all or none.
pub(super) fn attach_all(ebpf: &mut Ebpf, file: &Path, points: &[Point]) -> Result<Attached> {
    let mut links = Vec::with_capacity(points.len());
    for point in points {
        match attach(ebpf, file, *point) {
            Ok(link) => links.push((point.program, link)),
            Err(error) => {
                detach(ebpf, links);
                return Err(error);
            }
        }
    }
    Ok(links)
}

fn attach(ebpf: &mut Ebpf, file: &Path, point: Point) -> Result<UProbeLinkId> {
    let program = program(ebpf, point.program)?;
    match program.load() {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
        Err(error) => return Err(error).context("the kernel refused the program"),
    }
    program
        .attach(point.offset, file, UProbeScope::AllProcesses)
        .with_context(|| {
            format!(
                "cannot probe offset {:#x} of {}",
                point.offset,
                file.display()
            )
        })
}

/// The kernel waits for every thread that may be inside a probe, a tenth of a second and more each
/// time. So a thread for each waits with it, and who attaches and detaches goes on.
pub(super) fn detach(ebpf: &mut Ebpf, links: Attached) {
    for link in take(ebpf, links) {
        // Where there can be no thread, the link ends here.
        let _ = thread::Builder::new().spawn(move || drop(link));
    }
}

/// As [`detach`], and waits until all have ended. Those who wait together wait once.
pub(super) fn detach_now(ebpf: &mut Ebpf, links: Attached) {
    let links = take(ebpf, links);
    thread::scope(|scope| {
        for link in links {
            scope.spawn(move || drop(link));
        }
    });
}

fn take(ebpf: &mut Ebpf, links: Attached) -> Vec<UProbeLink> {
    let mut taken = Vec::with_capacity(links.len());
    for (name, link) in links {
        match program(ebpf, name).and_then(|program| Ok(program.take_link(link)?)) {
            Ok(link) => taken.push(link),
            Err(error) => tracing::debug!(name, %error, "probe not detached"),
        }
    }
    taken
}
