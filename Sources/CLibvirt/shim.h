#pragma once
#include <stddef.h>
#include <libvirt/libvirt.h>
#include <libvirt/libvirt-qemu.h>
#include <libvirt/virterror.h>

/* VIR_DOMAIN_EVENT_CALLBACK is a macro with a cast, which Swift does not import: each kind of event
 * is registered here with its callback's true type. */

static inline int ftvm_libvirt_register_lifecycle(virConnectPtr connection, virConnectDomainEventCallback callback,
                                                  void *opaque, virFreeCallback release) {
    return virConnectDomainEventRegisterAny(connection, NULL, VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                                            VIR_DOMAIN_EVENT_CALLBACK(callback), opaque, release);
}

static inline int ftvm_libvirt_register_reboot(virConnectPtr connection, virConnectDomainEventGenericCallback callback,
                                               void *opaque, virFreeCallback release) {
    return virConnectDomainEventRegisterAny(connection, NULL, VIR_DOMAIN_EVENT_ID_REBOOT, callback, opaque, release);
}
