package build

// EtcdVersion is the etcd release that this build is compatible with, as reported by
// --version, /version, the Status call and the headers between members. This is its only
// definition; APIVersion and membership.Own derive from it.
const EtcdVersion = "3.7.3"

// APIVersion is the version of the gRPC API, printed by the tools.
const APIVersion = "3.7"
