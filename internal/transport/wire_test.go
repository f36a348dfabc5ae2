package transport

// Headers of the peer protocol as etcd has them.
const (
	headerFrom       = "X-Server-From"
	headerVersion    = "X-Server-Version"
	headerMinVersion = "X-Min-Cluster-Version"
	headerCluster    = "X-Etcd-Cluster-ID"
	headerTo         = "X-Raft-To"
	headerPeerURLs   = "X-PeerURLs"
)
