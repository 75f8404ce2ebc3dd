//! `struct file` by its descriptor in the current process, and what two of them have in common.
//!
//! Plain pointers, null where there is nothing: of an `Option` the compiler would carry the
//! undefined half of `None` along, which the verifier of older kernels refuses.

use agent_common::{connection::FAMILY_UNIX, kernel_config::KernelField};
use aya_ebpf::helpers::bpf_probe_read_kernel;

use super::{field, task};

/// `S_IFMT` and `S_IFIFO`, `include/uapi/linux/stat.h`.
const TYPE: u16 = 0o170_000;
const PIPE: u16 = 0o010_000;

#[derive(Clone, Copy)]
pub(crate) struct File(*const u8);

impl File {
    /// What a descriptor of the current process stands for; nothing where it is not open.
    #[inline(always)]
    pub(crate) fn of(descriptor: u32) -> Self {
        let files = pointer(task::current(), KernelField::TaskFiles);
        let table = pointer(files, KernelField::FilesTable);
        let size: u32 = number(table, KernelField::TableSize);
        if descriptor >= size {
            return Self(core::ptr::null());
        }
        #[expect(
            clippy::cast_ptr_alignment,
            reason = "the kernel's array is one of pointers"
        )]
        let array = pointer(table, KernelField::TableFiles).cast::<*const u8>();
        // SAFETY: only an address is computed; reading it is checked by the helper, which fails
        // instead of faulting.
        let file = unsafe { bpf_probe_read_kernel(array.wrapping_add(descriptor as usize)) };
        Self(file.unwrap_or(core::ptr::null()))
    }

    /// Whether what is written into this file comes out of the other one: one eventfd, the two ends
    /// of a pipe, or of a pair of unix sockets.
    #[inline(always)]
    pub(crate) fn leads_to(self, other: Self) -> bool {
        if self.0.is_null() || other.0.is_null() {
            return false;
        }
        if self.0 == other.0 {
            return true;
        }
        let inode = self.inode();
        if inode == other.inode() {
            let mode: u16 = number(inode, KernelField::InodeMode);
            return mode & TYPE == PIPE;
        }
        let (from, to) = (self.unix_socket(), other.unix_socket());
        !from.is_null() && !to.is_null() && pointer(from, KernelField::UnixPeer) == to
    }

    #[inline(always)]
    fn inode(self) -> *const u8 {
        pointer(self.0, KernelField::FileInode)
    }

    /// `file->private_data->sk`, where that is one: a socket points back to its file.
    #[inline(always)]
    pub(crate) fn socket(self) -> *const u8 {
        let socket = pointer(self.0, KernelField::FilePrivate);
        if pointer(socket, KernelField::SocketFile) == self.0 {
            pointer(socket, KernelField::SocketSock)
        } else {
            core::ptr::null()
        }
    }

    #[inline(always)]
    fn unix_socket(self) -> *const u8 {
        let sock = self.socket();
        let family: u16 = number(sock, KernelField::SockFamily);
        if family == FAMILY_UNIX {
            sock
        } else {
            core::ptr::null()
        }
    }
}

/// A number of the structure at `base`; 0 where there is none. Hidden from the compiler, which
/// would test for `None` once more where the number is compared.
#[inline(always)]
fn number<T: Copy + Default>(base: *const u8, name: KernelField) -> T {
    core::hint::black_box(field(base, name).unwrap_or_default())
}

/// A pointer of the structure at `base`; null where there is none.
#[inline(always)]
fn pointer(base: *const u8, name: KernelField) -> *const u8 {
    core::hint::black_box(field(base, name).unwrap_or(core::ptr::null()))
}
