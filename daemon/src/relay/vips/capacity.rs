//! How many VIP listeners there may be.
//!
//! Owns: the limit. Must not know: who listens. Driven by: `owner`, once.

/// Half of the files this process may open, at most [`MAX_LISTENERS`]: flows and links need the rest.
pub(super) fn max_listeners() -> usize {
    let soft = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    let half = soft.map_or(512, |(soft, _)| soft / 2);
    usize::try_from(half).unwrap_or(MAX_LISTENERS).min(MAX_LISTENERS)
}

/// Most listeners. Each costs 1 KiB here and 3.4 KiB in the kernel (measured): 36 MiB together.
const MAX_LISTENERS: usize = 8_192;
