//! Downloads of a client that go on while something else happens.

use super::steps;
use crate::error::Result;
use crate::fail;
use crate::lab::domain::Background;
use crate::lab::guests::PART;
use crate::lab::world::World;

/// One download after the other, until it is enough.
pub struct Loads {
    client: usize,
    downloads: Background,
}

/// What a client has received at a moment of its own clock.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    uptime_s: f64,
    bytes: f64,
}

impl Sample {
    /// Bytes per second since an earlier one.
    pub fn rate_since(self, earlier: Self) -> f64 {
        (self.bytes - earlier.bytes) / (self.uptime_s - earlier.uptime_s).max(0.01)
    }
}

impl Loads {
    /// Begins on the client number `client` of the plan.
    ///
    /// # Errors
    /// When that client does not run.
    pub fn start(world: &World, client: usize) -> Result<Self> {
        let line = format!(
            "rm -f /tmp/enough; until [ -e /tmp/enough ]; do \
             timeout 170 wget -q -O - http://{}:443/{} | sha256sum; done",
            world.plan.internet, PART.name
        );
        let downloads = world.client(client)?.spawn(&world.lab, &line)?;
        Ok(Self { client, downloads })
    }

    /// What the client has received so far.
    ///
    /// # Errors
    /// When it does not tell.
    pub fn sample(&self, world: &World) -> Result<Sample> {
        let client = world.client(self.client)?;
        let line = "cut -d' ' -f1 /proc/uptime; cat /sys/class/net/eth0/statistics/rx_bytes";
        let text = world.sh(client, line)?;
        let mut numbers = text.lines().filter_map(|line| line.trim().parse::<f64>().ok());
        match (numbers.next(), numbers.next()) {
            (Some(uptime_s), Some(bytes)) => Ok(Sample { uptime_s, bytes }),
            _ => fail!("{} does not tell what it received: {text:?}", client.name),
        }
    }

    /// Lets the download that runs be the last; says what came.
    ///
    /// # Errors
    /// When one has not the right hash.
    pub fn enough(self, world: &World) -> Result<String> {
        let client = world.client(self.client)?;
        world.sh(client, "touch /tmp/enough")?;
        let text = self.downloads.finish(&world.lab, client, steps::DOWNLOAD)?.text;
        let (_, hash) = PART.content();
        let right = text.lines().filter(|line| line.starts_with(&hash)).count();
        if right == 0 || right != text.lines().count() {
            fail!("{}: every download should have the SHA-256 {hash}: {text}", client.name);
        }
        Ok(format!("{right} x {} MB with the right hash", PART.megabytes()))
    }
}
