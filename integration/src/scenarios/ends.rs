//! Ways in which a domain ends.

use std::time::{Duration, Instant};

use super::MOMENT;
use crate::error::Result;
use crate::fail;
use crate::lab::domain::State;
use crate::lab::world::World;

/// How a domain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Killed,
    ShutDown,
    Crashed,
    /// Its kernel boots anew without closing anything; Xen then has another domain to be made, as Qubes does.
    Rebooted,
}

impl End {
    /// Ends a Linux guest so. A crashed domain stays as it is until it is destroyed: `meanwhile` is looked at before.
    pub(super) fn befalls(
        self,
        world: &mut World,
        name: &str,
        meanwhile: fn(&World) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Killed => world.destroy(name),
            Self::ShutDown => world.shutdown(name).map(drop),
            Self::Crashed => {
                press(world, name, 'c')?;
                until(world, name, State::Crashed)?;
                meanwhile(world)?;
                world.destroy(name)
            }
            Self::Rebooted => {
                press(world, name, 'b')?;
                until(world, name, State::Gone)?;
                world.note_end(name);
                Ok(())
            }
        }
    }
}

/// A key of Linux' magic ones.
fn press(world: &World, name: &str, key: char) -> Result<()> {
    let line = format!(
        "(sleep 1; echo 1 >/proc/sys/kernel/sysrq; echo {key} >/proc/sysrq-trigger) >/dev/null 2>&1 &"
    );
    world.sh(world.domain(name)?, &line).map(drop)
}

/// Waits until Xen says so of a domain.
pub(super) fn until(world: &World, name: &str, wanted: State) -> Result<()> {
    let begun = Instant::now();
    while world.lab.state(name)? != wanted {
        if begun.elapsed() > MOMENT {
            fail!("{name} is {:?}, not {wanted:?}", world.lab.state(name)?);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}
