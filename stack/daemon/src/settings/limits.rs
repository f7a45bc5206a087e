//! The limits of a container: whole pages, in order, and large enough for one flow.

use skbudget_controller::{LimitError, Limits, PAGE_SIZE};
use skbudget_stack::ContainerConfig;

use super::{ContainerOptions, HARD_DEFAULT, Invalid};
use crate::cli::{Isolation, MTU_DEFAULT, OnOff};
use crate::units::{Bytes, Size, describe};

/// The hard limit in bytes (`None`: no limit) and the three thresholds in pages.
pub(super) fn limits(options: &ContainerOptions) -> Result<(Option<u64>, Limits), Invalid> {
    let given = [("hard", options.hard), ("soft", options.soft), ("low", options.low)];
    if options.isolation == Some(Isolation::Off) {
        if let Some((key, _)) = given.iter().find(|(_, size)| size.is_some()) {
            let what = " has no effect with --isolation off: omit it, or choose container";
            return Err(Invalid::new(key, what));
        }
        return Ok((None, Limits::NONE));
    }
    let (mtu, offload) = (options.mtu.unwrap_or(MTU_DEFAULT), options.offload != Some(OnOff::Off));
    let least = ContainerConfig::least_hard_bytes(mtu, offload);
    let (hard, limits) = limits_of_options(options, least)?;
    Ok((Some(hard), limits))
}

/// The hard limit in bytes, at least `least`, and the three thresholds in pages.
pub(crate) fn limits_of_options(
    options: &ContainerOptions,
    least: u64,
) -> Result<(u64, Limits), Invalid> {
    let hard = options.hard.unwrap_or(Bytes(HARD_DEFAULT));
    // Before soft and low are derived: a `hard` of less than a page would make the error name those.
    holds_one_flow(hard.0, least)?;
    Ok((hard.0, ordered(hard, options.soft, options.low)?))
}

/// The three thresholds in pages, in order.
pub(crate) fn ordered(
    hard: Bytes,
    soft: Option<Bytes>,
    low: Option<Bytes>,
) -> Result<Limits, Invalid> {
    let bytes = |size: Option<Bytes>| size.map(|Bytes(bytes)| bytes);
    let disorder = |low: u64, soft: u64, hard: u64| {
        let size = |pages: u64| Size(pages.saturating_mul(PAGE_SIZE));
        // Names the key with the value that breaks the order.
        let key = if soft >= hard { "soft" } else { "low" };
        let (low, soft, hard) = (size(low), size(soft), size(hard));
        let what =
            format!(": low {low} < soft {soft} < hard {hard} is needed (whole pages of 4KiB)");
        Invalid::new(key, what)
    };
    match Limits::from_bytes(hard.0, bytes(soft), bytes(low)) {
        // Rounding down to pages can make two thresholds equal.
        Ok(l) if l.low < l.soft && l.soft < l.hard => Ok(l),
        Ok(l) => Err(disorder(l.low, l.soft, l.hard)),
        Err(LimitError::Disorder { low, soft, hard }) => Err(disorder(low, soft, hard)),
        Err(e) => Err(Invalid::new("hard", format!(": {}", describe(&e)))),
    }
}

/// Refuses a limit below what one flow and the device queue need.
pub(super) fn holds_one_flow(hard: u64, least: u64) -> Result<(), Invalid> {
    if hard >= least {
        return Ok(());
    }
    let (hard, least) = (Size(hard), Size(least));
    let what = format!(
        " {hard} is too small for one flow and the device queue: at least {least} is needed"
    );
    Err(Invalid::new("hard", what))
}
