//! Typed readers of kernel structures by loaded offsets: the only pointer chasing.
//!
//! Offsets come from the running kernel's BTF through [`KernelField`]. A field that this kernel
//! lacks reads as `None`.

pub(crate) mod file;
pub(crate) mod go;
pub(crate) mod sock;
pub(crate) mod task;

use agent_common::kernel_config::{ABSENT, KernelField};
use aya_ebpf::helpers::{bpf_probe_read_kernel, generated::bpf_probe_read_kernel as read_raw};

use crate::maps::config;

/// Offset of a field, a constant to the verifier.
#[inline(always)]
pub(crate) fn offset(field: KernelField) -> Option<usize> {
    let offset = config!(offsets[field as usize]);
    if offset == ABSENT {
        None
    } else {
        Some(offset as usize)
    }
}

/// Reads a field of type `T` of the structure at `base`.
#[inline(always)]
pub(crate) fn field<T>(base: *const u8, field: KernelField) -> Option<T> {
    let offset = offset(field)?;
    if base.is_null() {
        return None;
    }
    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_kernel(base.add(offset).cast::<T>()) }.ok()
}

/// As [`field`], of a structure whose type the verifier knows: a plain load instead of a helper
/// call. The kernel makes it safe against faults: it then reads 0.
#[inline(always)]
pub(crate) fn typed_field<T>(base: *const u8, field: KernelField) -> Option<T> {
    let offset = offset(field)?;
    if base.is_null() {
        return None;
    }
    // SAFETY: the verifier refuses the program unless `base` points to the structure that has the
    // field, by its own type information.
    Some(unsafe { core::ptr::read_volatile(base.add(offset).cast::<T>()) })
}

/// Address of an embedded structure.
#[inline(always)]
pub(crate) fn embedded(base: *const u8, field: KernelField) -> Option<*const u8> {
    // SAFETY: only an address is computed; reading it is checked by the helper.
    offset(field).map(|offset| unsafe { base.add(offset) })
}

/// A copy made by a helper, of which the verifier knows nothing. So what comes behind is followed
/// once, and not once for each way in which the values came about.
#[inline(always)]
pub(crate) fn unknown<T: Copy>(value: &T) -> T {
    let mut copy = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: as large as the value, whose bytes it gets; of memory of the program itself nothing
    // can fail.
    unsafe {
        read_raw(
            copy.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            core::ptr::from_ref(value).cast(),
        );
        copy.assume_init()
    }
}
