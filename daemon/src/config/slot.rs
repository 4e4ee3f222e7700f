//! Slots: which of up to ten daemons of a machine one is.
//!
//! Owns: the numbers a slot stands for. Must not know: whether a slot is free.
//! Driven by: `config` for defaults.

use std::fmt;
use std::str::FromStr;

/// A number 0..=9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(u8);

/// What `--slot` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotChoice {
    /// This one.
    Fixed(Slot),
    /// The first whose pool and port are free.
    Auto,
}

impl Slot {
    /// The slot of a machine's only daemon.
    pub const FIRST: Self = Self(0);
    /// The greatest slot.
    pub const LAST: Self = Self(9);

    /// Returns its number, 0..=9.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Returns a name that carries the number, except for slot 0.
    pub fn suffixed(self, name: &str) -> String {
        if self.0 == 0 { name.to_owned() } else { format!("{name}-{}", self.0) }
    }

    /// Returns all slots in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..=Self::LAST.0).map(Self)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SlotChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        match text.parse() {
            Ok(number) if number <= Slot::LAST.0 => Ok(Self::Fixed(Slot(number))),
            _ => Err(format!("{text:?} is no slot: write 0 to 9 or auto")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_the_numbers_zero_to_nine_or_auto() {
        assert_eq!("3".parse(), Ok(SlotChoice::Fixed(Slot(3))));
        assert_eq!("auto".parse(), Ok(SlotChoice::Auto));
        for wrong in ["10", "-1", "", "one"] {
            assert!(wrong.parse::<SlotChoice>().is_err(), "{wrong}");
        }
        assert_eq!(Slot(0).suffixed("gossamer"), "gossamer");
        assert_eq!(Slot(4).suffixed("gossamer"), "gossamer-4");
    }
}
