//! The flags that say where POSTs may go beyond the public Internet over HTTPS. Dispatcher and
//! control-plane must have the same.

use clap::Args;
use doorbell_common::address::AddressPolicy;
use ipnet::IpNet;

/// Flags of the services that judge addresses.
#[derive(Args, Clone, Debug)]
pub struct TargetArgs {
    /// Address ranges (CIDR, comma-separated) that may be delivered to although they are private.
    #[arg(long, env = "DOORBELL_ALLOW_TARGETS", value_delimiter = ',')]
    allow_targets: Vec<IpNet>,
    /// Allow plain http:// URLs.
    #[arg(long, env = "DOORBELL_ALLOW_HTTP")]
    allow_http: bool,
}

impl TargetArgs {
    /// The policy that the flags describe.
    #[must_use]
    pub fn policy(&self) -> AddressPolicy {
        AddressPolicy { allow_targets: self.allow_targets.clone(), allow_http: self.allow_http }
    }
}
