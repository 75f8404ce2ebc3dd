//! What both sides of the kernel line must agree on. No logic beyond bounds and ids, but for the
//! walks over frames, which both sides run.
//!
//! Layout rules of every type that crosses the line:
//! - `#[repr(C)]`, fixed-width integers and byte arrays only: no bool, enum, usize, pointer;
//! - no implicit padding: reserved fields are named, and on the user side deriving `IntoBytes`
//!   refuses what is left;
//! - a discriminant is an integer on the wire and becomes an enum by `TryFrom`, never by transmute.
//!
//! Feature `user` adds derives and `aya::Pod`, never fields. All values are in the byte order of
//! the machine unless a field says otherwise.
#![no_std]
#![deny(unsafe_code)]

pub mod connection;
pub mod drop_reason;
pub mod frames;
pub mod injection;
pub mod kernel_config;
pub mod limits;
pub mod outgoing_frames;
pub mod payload;
pub mod process;
pub mod record;
pub mod tcp_option;

/// Declares a type that crosses the kernel line with the derives of the user side.
macro_rules! wire {
    ($(#[$attribute:meta])* pub struct $name:ident { $($body:tt)* }) => {
        $(#[$attribute])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        #[cfg_attr(
            feature = "user",
            derive(
                zerocopy::FromBytes,
                zerocopy::IntoBytes,
                zerocopy::Immutable,
                zerocopy::KnownLayout,
                PartialEq,
                Eq
            )
        )]
        pub struct $name { $($body)* }
    };
}
pub(crate) use wire;
