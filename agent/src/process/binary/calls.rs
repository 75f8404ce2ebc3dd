//! Calls that one Go function makes of another: places to probe where arguments are in registers.
//! Pure.

use object::read::ReadRef;

use super::{elf::Elf, functions::Functions, machine_code};

/// Bytes of a function looked at; the largest of those that are have some 4,000.
const FUNCTION_BYTES: u64 = 8_192;

/// Calls that one function makes of another.
pub(super) struct Calls<'data> {
    entry: u64,
    pub(super) code: &'data [u8],
    /// In bytes behind the entry.
    pub(super) at: Vec<u64>,
}

impl<'data> Calls<'data> {
    /// By the first of the possible starts of the text where the one begins as functions do and
    /// calls the other one.
    pub(super) fn find<R: ReadRef<'data>>(
        file: &Elf<R>,
        functions: &Functions<'data>,
        within: &str,
        called: &str,
    ) -> Option<Self> {
        let (within, called) = (functions.find(within)?, functions.find(called)?);
        let size = within.size.min(FUNCTION_BYTES);
        let entries = within.entries.iter().zip(&called.entries);
        entries
            .filter_map(|(entry, called)| {
                let code: &'data [u8] = file.at_address(*entry, size).ok()?;
                machine_code::probe_offset(code)?;
                let at = machine_code::calls(code, *entry, *called);
                Some(Self {
                    entry: *entry,
                    code,
                    at,
                })
            })
            .find(|calls| !calls.at.is_empty())
    }

    /// Where the only one is; `None`: there are several.
    pub(super) fn only(&self) -> Option<u64> {
        match self.at[..] {
            [at] => Some(at),
            _ => None,
        }
    }

    /// Of the call at `at`, in the file.
    pub(super) fn offset<R: ReadRef<'data>>(&self, file: &Elf<R>, at: u64) -> Option<u64> {
        file.file_offset(self.entry.checked_add(at)?)
    }

    /// Of all of them.
    pub(super) fn offsets<R: ReadRef<'data>>(&self, file: &Elf<R>) -> Option<Vec<u64>> {
        self.at.iter().map(|at| self.offset(file, *at)).collect()
    }
}
