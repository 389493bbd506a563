{{- define "km.labels" -}}
app.kubernetes.io/name: km-server
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Not km.labels: by app.kubernetes.io/name KubeRay's services find Ray's pods. */ -}}
{{- define "km.rayLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: ray
{{- end }}

{{- define "km.secret" -}}
{{ .Values.existingSecret | default (printf "%s-km-server" .Release.Name) }}
{{- end }}

{{- define "km.raySecret" -}}
{{ .Values.engine.ray.existingTokenSecret | default (printf "%s-ray" .Release.Name) }}
{{- end }}

{{- define "km.rayToken" -}}
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ include "km.raySecret" . }}
      key: auth_token
{{- end }}

{{- define "km.storeEnv" -}}
{{- if .Values.store.existingSecret }}
- secretRef:
    name: {{ .Values.store.existingSecret }}
{{- else if .Values.store.credentials }}
- secretRef:
    name: {{ .Release.Name }}-store
{{- end }}
{{- end }}

{{- define "km.rayEnv" -}}
- configMapRef:
    name: {{ .Release.Name }}-settings
- configMapRef:
    name: {{ .Release.Name }}-gateway
- configMapRef:
    name: {{ .Release.Name }}-ray
{{- include "km.storeEnv" . }}
{{- end }}

{{- define "km.checksum" -}}
{{- /* What is in the settings' ConfigMaps, so that pods are made anew when it changes. */ -}}
{{- $ray := .Values.engine.ray -}}
{{- $replicas := list $ray.replicas $ray.maxReplicas $ray.replicaCpus $ray.replicaGpus $ray.settings -}}
{{ toYaml (list .Values.settings .Values.gateway.settings .Values.engine.kind $replicas) | sha256sum }}
{{- end }}

{{- define "km.resources" -}}
requests:
  {{- toYaml .resources.requests | nindent 2 }}
limits:
  {{- toYaml .resources.limits | nindent 2 }}
  {{- if .gpus }}
  nvidia.com/gpu: {{ .gpus }}
  {{- end }}
{{- end }}

{{- define "km.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "km.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "km.mounts" -}}
- name: data
  mountPath: /data
- name: tmp
  mountPath: /tmp
- name: shm
  mountPath: /dev/shm
{{- if .Values.models.existingClaim }}
- name: models
  mountPath: /models
  readOnly: true
{{- end }}
{{- end }}

{{- define "km.volumes" -}}
- name: data
  {{- if not .Values.settings.KM_STORE_URL }}
  persistentVolumeClaim:
    claimName: {{ .Values.persistence.existingClaim | default (printf "%s-data" .Release.Name) }}
  {{- else if .Values.cache.storageClass }}
  ephemeral:
    volumeClaimTemplate:
      spec:
        accessModes: [ReadWriteOnce]
        storageClassName: {{ .Values.cache.storageClass }}
        resources:
          requests:
            storage: {{ .Values.cache.size }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .Values.cache.size }}
  {{- end }}
- name: tmp
  emptyDir: {}
- name: shm
  emptyDir:
    medium: Memory
{{- if .Values.models.existingClaim }}
- name: models
  persistentVolumeClaim:
    claimName: {{ .Values.models.existingClaim }}
    readOnly: true
{{- end }}
{{- end }}
