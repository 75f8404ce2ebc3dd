fn main() {
    tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).init();
    let capture = match std::env::args().nth(1).as_deref() { Some("fexit") => Some(agent::kernel::CapturePath::Fexit), Some("kretprobe") => Some(agent::kernel::CapturePath::Kretprobe), Some("tracepoint") => Some(agent::kernel::CapturePath::Tracepoint), _ => None };
    let mut k = agent::kernel::load(&agent::kernel::Settings { capture, trace_all: true, agent_process_id: std::process::id(), ..Default::default() });
    match &mut k {
        Ok(k) => for _ in 0..30 { std::thread::sleep(std::time::Duration::from_millis(100)); let mut b = Default::default(); k.ring.drain(&mut b); if b.records > 0 { println!("{} {}", b.records, b.bytes.len()); } },
        Err(e) => println!("{e}"),
    }
    if let Ok(k) = k { println!("{:?}", k.drops.totals()); }
}
