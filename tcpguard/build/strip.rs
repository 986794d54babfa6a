//! Takes out of an eBPF object what only a debugger reads: four fifths of it. The type and line information in BTF, which
//! the loader gives to the kernel, stays.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// Rewrites `object` without its DWARF sections.
///
/// # Errors
/// A file that cannot be read or written, or is not ELF.
pub(crate) fn debug_info(object: &Path) -> anyhow::Result<()> {
    let data = fs::read(object).with_context(|| format!("reading {}", object.display()))?;
    let mut elf = Builder::read(&*data)?;
    for section in &mut elf.sections {
        section.delete = is_debug_info(section.name.as_slice());
    }
    // Their relocations, and the symbols that name them.
    elf.delete_orphans();
    // LLVM keeps the names of sections among those of symbols, for which the writer has no way.
    let names = elf.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    elf.write(&mut stripped)?;
    fs::write(object, stripped).with_context(|| format!("writing {}", object.display()))
}

/// The relocations of BTF are among it: they add the addresses of sections, which in an object are all 0.
fn is_debug_info(section: &[u8]) -> bool {
    let name = section.strip_prefix(b".rel").unwrap_or(section);
    name.starts_with(b".debug_") || section.starts_with(b".rel.BTF")
}
