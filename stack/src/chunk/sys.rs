//! Pages of memory in maps of their own, so that each can go back to the system by itself: what the allocator is given
//! back it may keep. Neither std nor a crate in the tree lends out parts of a map that outlive a borrow of it.

use std::alloc::{Layout, handle_alloc_error};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::Chunk;

/// Bytes of a page: of every Linux on x86-64, and the least anywhere.
pub(super) const PAGE: usize = 4096;

/// Unmapped with its last page.
#[derive(Debug)]
struct Map {
    start: NonNull<u8>,
    len: usize,
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the map is ours alone, and no page of it is left: each holds a reference to it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

// SAFETY: it is an address and a length, used in `drop` only.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

/// One page, owned like a box: nobody else has a pointer to its bytes.
#[derive(Debug)]
pub(super) struct Page {
    bytes: NonNull<[u8; PAGE]>,
    _map: Arc<Map>,
}

// SAFETY: it owns its bytes, which are plain memory.
unsafe impl Send for Page {}
// SAFETY: shared, its bytes are only read.
unsafe impl Sync for Page {}

impl Page {
    pub(super) fn bytes(&self) -> &[u8; PAGE] {
        // SAFETY: mapped readable and writable as long as the page is, initialized (a map begins with zeroes), and no
        // mutable reference is there: that would borrow the page.
        unsafe { self.bytes.as_ref() }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8; PAGE] {
        // SAFETY: as above; the page is borrowed mutably.
        unsafe { self.bytes.as_mut() }
    }
}

/// A new map of so many pages. They take no memory until they are written to.
pub(super) fn map(pages: usize) -> Vec<Page> {
    let len = pages * PAGE;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous map somewhere else than anything that is mapped.
    let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
    let Some(start) = NonNull::new(start.cast::<u8>()).filter(|_| start != libc::MAP_FAILED) else {
        // As for every other allocation.
        handle_alloc_error(Layout::new::<[u8; PAGE]>());
    };
    // One page that is written to must not bring 511 others. A kernel without huge pages refuses, and has none.
    // SAFETY: the whole of the map made above.
    unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_NOHUGEPAGE) };
    let map = Arc::new(Map { start, len });
    let page = |at: usize| {
        // SAFETY: `at` is below `pages`: the address is within the map.
        let bytes = unsafe { start.add(at * PAGE) }.cast();
        Page { bytes, _map: Arc::clone(&map) }
    };
    (0..pages).map(page).collect()
}

/// Gives the memory of chunks back to the system; they hold zeroes afterwards. Those that follow each other in the list
/// and in memory are given back in one call.
pub(super) fn discard(chunks: &mut [Chunk]) {
    let mut rest = chunks;
    while let Some(Chunk(first)) = rest.first() {
        let start = first.bytes;
        let at = |n: usize| start.as_ptr().addr() + n * PAGE;
        let follow = rest.iter().enumerate().take_while(|(n, chunk)| address(&chunk.0) == at(*n));
        let run = follow.count();
        // SAFETY: all of it belongs to pages that are borrowed mutably, so no reference to their bytes is there, and
        // zeroes are valid bytes. A failure (a page of the system is larger) leaves the memory as it is.
        unsafe { libc::madvise(start.as_ptr().cast(), run * PAGE, libc::MADV_DONTNEED) };
        rest = &mut rest[run..];
    }
}

/// Where it is: pages that are neighbours in memory are given back together.
pub(super) fn address(page: &Page) -> usize {
    page.bytes.as_ptr().addr()
}
