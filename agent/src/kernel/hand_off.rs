//! EDGE: the hooks on threads that hand work to each other, attached while a process is followed.

use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{BtfTracePoint, tp_btf::BtfTracePointLinkId},
};

use super::{attach::HAND_OFF, go::lock};

/// The hooks see every switch and every wake-up of the machine, so they are there only while they
/// are needed.
pub struct HandOffHooks {
    /// Shared with the guard, which detaches everything at the end.
    ebpf: Arc<Mutex<Ebpf>>,
    links: Vec<(&'static str, BtfTracePointLinkId)>,
}

impl HandOffHooks {
    pub(super) fn take(ebpf: &Arc<Mutex<Ebpf>>) -> Self {
        Self {
            ebpf: Arc::clone(ebpf),
            links: Vec::new(),
        }
    }

    /// Attaches what is not attached yet.
    pub fn attach(&mut self) -> Result<()> {
        if !self.links.is_empty() {
            return Ok(());
        }
        let attached = self.try_attach();
        if attached.is_err() {
            self.detach();
        }
        attached
    }

    fn try_attach(&mut self) -> Result<()> {
        for name in HAND_OFF {
            let mut ebpf = lock(&self.ebpf)?;
            let link = program(&mut ebpf, name)?.attach()?;
            self.links.push((name, link));
        }
        Ok(())
    }

    /// Detaches them; the programs stay loaded.
    pub fn detach(&mut self) {
        let Ok(mut ebpf) = lock(&self.ebpf) else {
            return;
        };
        for (name, link) in self.links.drain(..) {
            let detached = program(&mut ebpf, name).and_then(|program| Ok(program.detach(link)?));
            if let Err(error) = detached {
                tracing::debug!(%error, hook = name, "hook not detached");
            }
        }
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint> {
    Ok(ebpf
        .program_mut(name)
        .with_context(|| format!("program {name} is not in the eBPF object"))?
        .try_into()?)
}
