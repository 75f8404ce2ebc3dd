pub fn detect(_: super::Flow, _: &[u8]) -> super::Verdict { super::Verdict::No }
pub fn session(_: super::Endpoint) -> Box<dyn super::Session> { unimplemented!() }
