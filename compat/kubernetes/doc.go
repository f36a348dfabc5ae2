// Package kubernetes is the lane of those who run a kube-apiserver on this server.
//
// In: a real kube-apiserver, built from Kubernetes' module, and kubeadm's own code, which says
// how members and their certificates are set up. Three members run as kubeadm starts them, on
// machines of their own (network namespaces), with the apiserver before them. Writers change
// objects of several kinds while members are killed and stopped one by one, and the apiserver
// compacts and is started anew.
//
// Out: every acknowledged write is found, also in the store itself; watches saw each change
// once and in order; lists by pages and by revision agree with what was written; members hold
// the same; the apiserver's log has no complaint that it does not have with real etcd. With
// -compare the same is done with real etcd, and the figures of both are printed.
//
// The manifests in deploy/kubernetes are judged here, too: by strict decoding, by the apiserver,
// by what kubeadm writes, and by running what they say.
package kubernetes
