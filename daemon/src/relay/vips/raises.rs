//! Which names of this node must have another address, because another name has theirs.
//!
//! Owns: the look at one's own names. Must not know: listeners, how a raised `try` travels. Driven by: the owner of
//! VIPs, after each change of its table. The rule itself is [`Table::attempt_for`].

use gossamer_core::vip::{Table, VipName};
use gossamer_wire::{GroupName, ServiceName, Tries};

use crate::register::{LocalService, Raise};

/// Returns what this node's instances of a service are to publish instead of their present `try`s. `own` is
/// sorted by service.
pub(super) fn of_service(
    table: &Table,
    own: &[LocalService],
    group: &GroupName,
    service: &ServiceName,
) -> Vec<Raise> {
    let first = own.partition_point(|local| local.record.service < *service);
    let of_service = own.iter().skip(first).take_while(|local| local.record.service == *service);
    of_service.filter_map(|local| raise(table, local, group)).collect()
}

fn raise(table: &Table, local: &LocalService, group: &GroupName) -> Option<Raise> {
    let (service, instance, tries) = (&local.record.service, &local.record.instance, local.record.tries);
    let of_instance = VipName::Instance(service.clone(), group.clone(), instance.clone());
    let of_group = VipName::Group(service.clone(), group.clone());
    let raised = Tries {
        service: table.attempt_for(&VipName::Service(service.clone()), tries.service),
        group: table.attempt_for(&of_group, tries.group),
        instance: table.attempt_for(&of_instance, tries.instance),
    };
    (raised != tries).then(|| Raise { service: service.clone(), instance: instance.clone(), tries: raised })
}
