package build

// EtcdVersion is the release of etcd whose contract this build keeps: what --version,
// /version, the Status call and the headers between members report. It is written
// down here alone; APIVersion and membership.Own follow from it.
const EtcdVersion = "3.7.3"

// APIVersion is that of the gRPC API, which the tools print.
const APIVersion = "3.7"
