// Package kubernetes checks Quorate as the store of a kube-apiserver.
//
// In: a real kube-apiserver, built from Kubernetes' module, and kubeadm's own code, which defines how members
// and their certificates are set up. Three members run as kubeadm starts them, on hosts of their own (network
// namespaces), with the apiserver in front of them. Writers change objects of several kinds while members are
// killed and stopped one by one, and the apiserver compacts and is restarted.
//
// Out: every acknowledged write is found, in the store itself too; watches saw each change once and in order;
// lists by pages and by revision agree with what was written; members hold the same; the apiserver's log has no
// complaint that it does not have with real etcd. With -compare the same is done with real etcd, and the figures
// of both are printed.
//
// The manifests in deploy/kubernetes are checked here, too: by strict decoding, by the apiserver, by what
// kubeadm writes, and by running what they define.
package kubernetes
