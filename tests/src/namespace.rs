//! Network namespaces of a test's own, each with a link to the one that the tests run in.

use std::{
    process::{Command, id},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::process::output;

/// A network namespace and its link; both go when it is dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    /// Names of the link's ends, here and there.
    near_link: String,
    /// Addresses of both ends.
    near: String,
    far: String,
}

/// Namespaces of this process so far.
static MADE: AtomicU32 = AtomicU32::new(0);

impl Namespace {
    /// The link's other end has this name.
    pub const FAR_LINK: &str = "far0";

    /// Addresses and names are of this process, so that others may test at the same time.
    pub fn create() -> Self {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let subnet = id().wrapping_mul(8).wrapping_add(number) % (1 << 14);
        let address = |host: u32| {
            let [_, _, third, fourth] = (subnet * 4 + host).to_be_bytes();
            format!("10.203.{third}.{fourth}")
        };
        let made = Self {
            name: format!("inject{}-{number}", id()),
            near_link: format!("in{}-{number}", id()),
            near: address(1),
            far: address(2),
        };
        let (namespace, near, far) = (&made.name, &made.near_link, Self::FAR_LINK);
        for line in [
            format!("netns add {namespace}"),
            format!("link add {near} type veth peer name {far} netns {namespace}"),
            format!("addr add {}/30 dev {near}", made.near),
            format!("link set {near} up"),
            format!("-n {namespace} addr add {}/30 dev {far}", made.far),
            format!("-n {namespace} link set {far} up"),
            format!("-n {namespace} link set lo up"),
        ] {
            let mut command = Command::new("ip");
            output(command.args(line.split(' ')));
        }
        made
    }

    /// The address of the end that is in the tests' own namespace.
    pub fn near(&self) -> &str {
        &self.near
    }

    /// The address of the end that is in the other one.
    pub fn far(&self) -> &str {
        &self.far
    }

    /// The name of the link in the tests' own namespace.
    pub fn near_link(&self) -> &str {
        &self.near_link
    }

    /// Runs what is given as arguments in the namespace.
    pub fn command(&self) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The link ends with either of its ends. A leftover is no failure of what is tested.
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}
