//! Attached functions: one file per kernel subject, small hooks over shared bodies.

pub(crate) mod go;
pub(crate) mod go_streams;
pub(crate) mod go_tls;
pub(crate) mod hand_off;
pub(crate) mod inject;
pub(crate) mod inject_context;
pub(crate) mod inject_decrypted;
pub(crate) mod inject_frames;
pub(crate) mod inject_go;
pub(crate) mod inject_head;
pub(crate) mod inject_message;
pub(crate) mod inject_option;
pub(crate) mod inject_option_reader;
pub(crate) mod inject_search;
pub(crate) mod kretprobe;
pub(crate) mod openssl;
pub(crate) mod process;
pub(crate) mod rustls;
pub(crate) mod socket_calls;
pub(crate) mod socket_data;
pub(crate) mod socket_lifecycle;
pub(crate) mod socket_record;
