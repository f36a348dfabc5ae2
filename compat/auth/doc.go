// Package auth checks users and roles in a mixed cluster of Quorate members and etcd members: whichever member
// leads, is asked, or caught up by a snapshot, all make the same decisions and hold the same records.
package auth
