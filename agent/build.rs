fn main() {
    let out = std::env::var("OUT_DIR").unwrap();
    std::fs::copy(std::env::var("AGENT_EBPF_OBJECT").unwrap(), format!("{out}/agent-ebpf")).unwrap();
    println!("cargo:rerun-if-env-changed=AGENT_EBPF_OBJECT");
    println!("cargo:rerun-if-changed={}", std::env::var("AGENT_EBPF_OBJECT").unwrap());
}
