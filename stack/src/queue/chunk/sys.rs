//! Pages in maps of their own, so that each page can be returned to the system separately; memory that is returned to
//! the allocator may stay in the process. Neither std nor a crate in the tree lends parts of a map that outlive a
//! borrow of it.

use std::alloc::{Layout, handle_alloc_error};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::Chunk;

/// Size of a page, bytes: on every Linux on x86-64, and the minimum elsewhere.
pub(super) const PAGE: usize = 4096;

/// A map. The drop of its last page unmaps it.
#[derive(Debug)]
struct Map {
    start: NonNull<u8>,
    len: usize,
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: this map owns the range, and no page of it exists any more: each page holds a reference to the map.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

// SAFETY: an address and a length, used in `drop` only.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

/// One page, owned like a box: no other object has a pointer to its bytes.
#[derive(Debug)]
pub(super) struct Page {
    bytes: NonNull<[u8; PAGE]>,
    _map: Arc<Map>,
}

// SAFETY: the page owns its bytes, which are plain memory.
unsafe impl Send for Page {}
// SAFETY: through a shared reference the bytes are only read.
unsafe impl Sync for Page {}

impl Page {
    /// The bytes of the page.
    pub(super) fn bytes(&self) -> &[u8; PAGE] {
        // SAFETY: the bytes are mapped readable and writable while the page exists, and initialized (a new map holds
        // zeroes). No mutable reference exists, since that would borrow the page.
        unsafe { self.bytes.as_ref() }
    }

    /// The bytes of the page, to be written.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8; PAGE] {
        // SAFETY: as above; this is the only reference, since the page is borrowed mutably.
        unsafe { self.bytes.as_mut() }
    }
}

/// Maps `pages` new pages. They use no memory until they are written to.
pub(super) fn map(pages: usize) -> Vec<Page> {
    let len = pages * PAGE;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous map; the kernel chooses an address that is not in use.
    let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
    let Some(start) = NonNull::new(start.cast::<u8>()).filter(|_| start != libc::MAP_FAILED) else {
        // Ends the process as every failed allocation does.
        handle_alloc_error(Layout::new::<[u8; PAGE]>());
    };
    // A write to one page must not allocate a huge page of 512. A kernel without huge pages returns an error, which is
    // ignored. SAFETY: the range is exactly the map made above.
    unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_NOHUGEPAGE) };
    let map = Arc::new(Map { start, len });
    let page = |at: usize| {
        // SAFETY: `at` is below `pages`, so the address is within the map.
        let bytes = unsafe { start.add(at * PAGE) }.cast();
        Page { bytes, _map: Arc::clone(&map) }
    };
    (0..pages).map(page).collect()
}

/// Returns the memory of `chunks` to the system; they hold zeroes afterwards. Chunks that are neighbours in the list
/// and in memory are returned with one call.
pub(super) fn discard(chunks: &mut [Chunk]) {
    let mut rest = chunks;
    while let Some(Chunk(first)) = rest.first() {
        let start = first.bytes;
        let at = |n: usize| start.as_ptr().addr() + n * PAGE;
        let follow = rest.iter().enumerate().take_while(|(n, chunk)| address(&chunk.0) == at(*n));
        let run = follow.count();
        // SAFETY: the range belongs to pages that are borrowed mutably, so no reference to their bytes exists, and
        // zeroes are valid bytes. On failure (a system with larger pages) the memory stays as it is.
        unsafe { libc::madvise(start.as_ptr().cast(), run * PAGE, libc::MADV_DONTNEED) };
        rest = &mut rest[run..];
    }
}

/// Address of the page, by which neighbours are found.
pub(super) fn address(page: &Page) -> usize {
    page.bytes.as_ptr().addr()
}
